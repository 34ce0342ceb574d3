import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.X509EncodedKeySpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/** What a signature covers, and whether it verifies. */
final class Signatures {
  // Algorithms belong to the key in the root; a message never chooses one.
  static final String ED25519 = "ED25519";
  static final String P256 = "ECDSA_P256";
  static final String SSHSIG = "SSHSIG_ED25519";

  // DER of SubjectPublicKeyInfo up to the raw key: RFC 8410, section 4; RFC 5480, section 2.
  private static final byte[] SPKI_ED25519 = HexFormat.of().parseHex("302a300506032b6570032100");
  private static final byte[] SPKI_P256 =
      HexFormat.of().parseHex("3059301306072a8648ce3d020106082a8648ce3d030107034200");
  private static final BigInteger P256_FIELD =
      new BigInteger("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", 16);
  private static final BigInteger P256_B =
      new BigInteger("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b", 16);
  private static final BigInteger P256_ORDER =
      new BigInteger("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16);

  private Signatures() {}

  /** Returns what is signed: DSSE's pre-authentication encoding of type and payload. */
  static byte[] pae(Codec.Envelope envelope) {
    byte[] type = envelope.payloadType().getBytes(StandardCharsets.UTF_8);
    byte[] payload = envelope.payload();
    byte[] start = ("DSSEv1 " + type.length + " ").getBytes(StandardCharsets.UTF_8);
    byte[] middle = (" " + payload.length + " ").getBytes(StandardCharsets.UTF_8);
    return joined(start, type, middle, payload);
  }

  static Hash digest(Codec.Envelope envelope) {
    return Hash.of(pae(envelope));
  }

  /** Returns a key's fingerprint: the first 128 bits of SHA-256 over algorithm and public key, in hex. */
  static String keyId(String algorithm, byte[] publicKey) {
    byte[] name = (algorithm + "\0").getBytes(StandardCharsets.UTF_8);
    return Hash.of(joined(name, publicKey)).toString().substring(0, 32);
  }

  /** Returns what an SSH key signs for a message (OpenSSH's PROTOCOL.sshsig, section 3; namespace flaghoist). */
  static byte[] sshSigned(byte[] message) {
    byte[] signed = "SSHSIG".getBytes(StandardCharsets.UTF_8);
    byte[] namespace = "flaghoist".getBytes(StandardCharsets.UTF_8);
    byte[] hash = "sha512".getBytes(StandardCharsets.UTF_8);
    for (byte[] part : List.of(namespace, new byte[0], hash, Hash.digest("SHA-512", message))) {
      signed = joined(signed, ByteBuffer.allocate(4).putInt(part.length).array(), part);
    }
    return signed;
  }

  /**
   * Refuses a public key that nobody can hold honestly.
   *
   * <p>Under an Ed25519 key of small order anyone can make signatures that verify; java.security does not look for that.
   */
  static void checkPublic(String algorithm, byte[] publicKey) throws Refusal {
    if (algorithm.equals(P256)) {
      if (publicKey.length != 65 || publicKey[0] != 4 || !onP256(publicKey)) {
        throw Refusal.malformed("P-256 public key: not a point of the curve, 65 bytes uncompressed");
      }
      return;
    }
    EdwardsPoint point = publicKey.length == 32 ? EdwardsPoint.decoded(publicKey) : null;
    if (point == null || !point.inPrimeOrderGroup()) {
      throw Refusal.malformed("Ed25519 public key: not a point of the prime-order group, 32 bytes");
    }
  }

  /** Returns those of the keys whose signature on the envelope verifies; each once. */
  static List<Codec.RootKey> verifiedKeys(Codec.Envelope envelope, List<Codec.RootKey> keys) {
    Map<String, byte[]> signed = new HashMap<>();
    for (Codec.Signature one : envelope.signatures()) {
      signed.put(one.keyId(), one.signature());
    }
    byte[] message = pae(envelope);
    List<Codec.RootKey> found = new ArrayList<>();
    for (Codec.RootKey key : keys) {
      byte[] signature = signed.get(key.keyId());
      if (signature != null && verifies(key, signature, message)) {
        found.add(key);
      }
    }
    return found;
  }

  /** Says whether a signature over a message is by the holder of a key that checkPublic has passed. */
  static boolean verifies(Codec.RootKey key, byte[] signature, byte[] message) {
    try {
      switch (key.algorithm()) {
        case ED25519:
          return ed25519Verifies(key.publicKey(), signature, message);
        case SSHSIG:
          return ed25519Verifies(key.publicKey(), signature, sshSigned(message));
        default:
          return p256Verifies(key.publicKey(), signature, message);
      }
    } catch (GeneralSecurityException error) {
      return false;
    }
  }

  /**
   * RFC 8032 with what libsodium asks for besides: R is not of small order.
   *
   * <p>Of those points only the neutral element can be an R that fits a key that checkPublic has passed. That S is below
   * the order and R canonical is looked at by java.security.
   */
  private static boolean ed25519Verifies(byte[] publicKey, byte[] signature, byte[] message)
      throws GeneralSecurityException {
    if (signature.length != 64 || EdwardsPoint.isNeutral(Arrays.copyOf(signature, 32))) {
      return false;
    }
    return verified("Ed25519", spki("Ed25519", SPKI_ED25519, publicKey), signature, message);
  }

  private static boolean p256Verifies(byte[] publicKey, byte[] signature, byte[] message)
      throws GeneralSecurityException {
    byte[] plain = strictDer(signature);
    return plain != null
        && verified("SHA256withECDSAinP1363Format", spki("EC", SPKI_P256, publicKey), plain, message);
  }

  private static boolean verified(String algorithm, PublicKey key, byte[] signature, byte[] message)
      throws GeneralSecurityException {
    Signature verifier = Signature.getInstance(algorithm);
    verifier.initVerify(key);
    verifier.update(message);
    return verifier.verify(signature);
  }

  private static PublicKey spki(String algorithm, byte[] prefix, byte[] raw) throws GeneralSecurityException {
    return KeyFactory.getInstance(algorithm).generatePublic(new X509EncodedKeySpec(joined(prefix, raw)));
  }

  /** Returns r and s, 32 bytes each, of an ECDSA signature whose DER is the only one that it has; else null. */
  static byte[] strictDer(byte[] der) {
    if (der.length < 8 || der.length > 72 || der[0] != 0x30 || der[1] != der.length - 2) {
      return null;
    }
    byte[] plain = new byte[64];
    int at = 2;
    for (int half = 0; half < 2; half++) {
      if (at + 2 > der.length || der[at] != 2 || der[at + 1] < 1 || at + 2 + der[at + 1] > der.length) {
        return null;
      }
      byte[] content = Arrays.copyOfRange(der, at + 2, at + 2 + der[at + 1]);
      at += 2 + content.length;
      BigInteger number = new BigInteger(content);
      if (number.signum() < 1 || number.compareTo(P256_ORDER) >= 0 || !Arrays.equals(number.toByteArray(), content)) {
        return null;
      }
      byte[] magnitude = content[0] == 0 ? Arrays.copyOfRange(content, 1, content.length) : content;
      System.arraycopy(magnitude, 0, plain, 32 * (half + 1) - magnitude.length, magnitude.length);
    }
    return at == der.length ? plain : null;
  }

  private static boolean onP256(byte[] encoded) {
    BigInteger x = new BigInteger(1, Arrays.copyOfRange(encoded, 1, 33));
    BigInteger y = new BigInteger(1, Arrays.copyOfRange(encoded, 33, 65));
    if (x.compareTo(P256_FIELD) >= 0 || y.compareTo(P256_FIELD) >= 0) {
      return false;
    }
    BigInteger right = x.pow(3).subtract(x.multiply(BigInteger.valueOf(3))).add(P256_B);
    return y.pow(2).subtract(right).mod(P256_FIELD).signum() == 0;
  }

  private static byte[] joined(byte[]... parts) {
    int length = 0;
    for (byte[] part : parts) {
      length += part.length;
    }
    ByteBuffer buffer = ByteBuffer.allocate(length);
    for (byte[] part : parts) {
      buffer.put(part);
    }
    return buffer.array();
  }
}
