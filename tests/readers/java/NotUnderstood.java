/** A record that only a newer release can judge. It must not be skipped, so reading ends there. */
final class NotUnderstood extends Exception {
  NotUnderstood(String format, Object... args) {
    super("written by a newer release: " + String.format(format, args));
  }
}
