import java.math.BigInteger;
import java.util.Arrays;

/**
 * A point of edwards25519 in affine coordinates, for what java.security does not say of one: whether it is of small order.
 *
 * <p>For public data only: its time depends on what it computes. Source: RFC 8032, section 5.1.
 */
record EdwardsPoint(BigInteger x, BigInteger y) {
  private static final BigInteger ORDER =
      BigInteger.TWO.pow(252).add(new BigInteger("27742317777372353535851937790883648493"));
  private static final BigInteger P = BigInteger.TWO.pow(255).subtract(BigInteger.valueOf(19));
  private static final BigInteger D = BigInteger.valueOf(-121665).multiply(inverse(BigInteger.valueOf(121666))).mod(P);
  private static final BigInteger ROOT_OF_MINUS_1 =
      BigInteger.TWO.modPow(P.subtract(BigInteger.ONE).shiftRight(2), P);
  private static final EdwardsPoint IDENTITY = new EdwardsPoint(BigInteger.ZERO, BigInteger.ONE);

  /** Returns the point in 32 bytes, or null: not on the curve, or not the encoding that an encoder gives. */
  static EdwardsPoint decoded(byte[] encoded) {
    boolean odd = (encoded[31] & 0x80) != 0;
    BigInteger y = yOf(encoded);
    if (y.compareTo(P) >= 0) {
      return null;
    }
    BigInteger y2 = y.multiply(y).mod(P);
    BigInteger square = y2.subtract(BigInteger.ONE).multiply(inverse(D.multiply(y2).add(BigInteger.ONE).mod(P))).mod(P);
    BigInteger x = square.modPow(P.add(BigInteger.valueOf(3)).shiftRight(3), P);
    if (!x.multiply(x).mod(P).equals(square)) {
      x = x.multiply(ROOT_OF_MINUS_1).mod(P);
    }
    if (!x.multiply(x).mod(P).equals(square) || (x.signum() == 0 && odd)) {
      return null;
    }
    return new EdwardsPoint(x.testBit(0) == odd ? x : P.subtract(x).mod(P), y);
  }

  /** Says whether 32 bytes are the neutral element. */
  static boolean isNeutral(byte[] encoded) {
    return yOf(encoded).equals(BigInteger.ONE);
  }

  boolean inPrimeOrderGroup() {
    return !equals(IDENTITY) && times(ORDER).equals(IDENTITY);
  }

  private static BigInteger littleEndian(byte[] bytes) {
    byte[] reversed = new byte[bytes.length];
    for (int i = 0; i < bytes.length; i++) {
      reversed[i] = bytes[bytes.length - 1 - i];
    }
    return new BigInteger(1, reversed);
  }

  private static BigInteger yOf(byte[] encoded) {
    byte[] bytes = Arrays.copyOf(encoded, 32);
    bytes[31] &= 0x7f; // the sign of x
    return littleEndian(bytes);
  }

  private EdwardsPoint times(BigInteger scalar) {
    EdwardsPoint sum = IDENTITY;
    for (int bit = scalar.bitLength() - 1; bit >= 0; bit--) {
      sum = sum.plus(sum);
      if (scalar.testBit(bit)) {
        sum = sum.plus(this);
      }
    }
    return sum;
  }

  private EdwardsPoint plus(EdwardsPoint other) {
    BigInteger xx = x.multiply(other.x).mod(P);
    BigInteger yy = y.multiply(other.y).mod(P);
    BigInteger k = D.multiply(xx).multiply(yy).mod(P);
    BigInteger sumX = x.multiply(other.y).add(other.x.multiply(y)).multiply(inverse(BigInteger.ONE.add(k)));
    BigInteger sumY = yy.add(xx).multiply(inverse(BigInteger.ONE.subtract(k)));
    return new EdwardsPoint(sumX.mod(P), sumY.mod(P));
  }

  private static BigInteger inverse(BigInteger value) {
    return value.modInverse(P);
  }
}
