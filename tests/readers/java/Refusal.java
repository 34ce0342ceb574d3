/** Why a record does not count. Its code is the one that `flaghoist audit verify` gives. */
final class Refusal extends Exception {
  final String code;

  Refusal(String code, String format, Object... args) {
    super(code + ": " + String.format(format, args), null, false, false);
    this.code = code;
  }

  static Refusal malformed(String format, Object... args) {
    return new Refusal("malformed", format, args);
  }
}
