import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.apache.avro.Schema;
import org.apache.avro.SchemaNormalization;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.util.Utf8;

/**
 * Decodes records with the schemas of the .avsc files.
 *
 * <p>It never encodes: what was signed is kept as it came.
 */
final class Codec {
  // Limits of the protocol, checked before anything is believed (docs/protocol.md, "Limits").
  static final int ENVELOPE_BYTES_MAX = 512 * 1024;
  static final int SIGNATURES_MAX = 16;
  static final int APPROVALS_MAX = 16;
  static final int OPS_MAX = 500;
  static final int TITLE_CHARS_MAX = 200;
  static final int REASON_CHARS_MAX = 4000;
  static final int POLICY_CHARS_MAX = 64 * 1024;
  // The longest honest list is a root's thousand keys.
  private static final int LIST_ITEMS_MAX = 10_000;
  static final String TYPE_PREFIX = "application/vnd.flaghoist.";

  private static final Pattern LOG_ID = Pattern.compile("[a-z0-9][a-z0-9._-]{2,63}");
  private static final Pattern PERSON = Pattern.compile("[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}");
  private static final Pattern SOURCE = Pattern.compile("([A-Za-z0-9][A-Za-z0-9._/-]{0,127})?");
  private static final Pattern KEY = Pattern.compile("[A-Za-z0-9][A-Za-z0-9._:@-]{0,254}");
  private static final Pattern KEY_ID = Pattern.compile("[0-9a-f]{32}");

  static {
    // A length in junk may claim two gigabytes: Avro allocates what it is told unless it is told not to.
    System.setProperty("org.apache.avro.limits.bytes.maxLength", Integer.toString(ENVELOPE_BYTES_MAX));
    System.setProperty("org.apache.avro.limits.string.maxLength", Integer.toString(ENVELOPE_BYTES_MAX));
    System.setProperty("org.apache.avro.limits.collectionItems.maxLength", Integer.toString(LIST_ITEMS_MAX));
  }

  record Signature(String keyId, byte[] signature) {}

  record Envelope(String payloadType, Hash schemaSha256, byte[] payload, List<Signature> signatures) {}

  sealed interface Body permits Release, RootUpdate, EpochClaim, Ratification, Preparation, Step {
    /** Whether the entry opens the next epoch: whoever takes over, and a root, end what others were about. */
    default boolean opensEpoch() {
      return this instanceof RootUpdate || this instanceof EpochClaim;
    }

    /** The proposal with its approvals that the entry publishes, or prepares; null when it does neither. */
    default Release carried() {
      return this instanceof Release release ? release : this instanceof Preparation shown ? shown.release() : null;
    }
  }

  record Release(Envelope proposal, List<Envelope> approvals, String policy) implements Body {}

  record RootUpdate(Envelope root) implements Body {}

  record EpochClaim(String holder) implements Body {}

  record Ratification(Hash proposalSha256, List<Envelope> approvals) implements Body {}

  /** Shows a proposal before it is published, so that sidecars acknowledge it. */
  record Preparation(Release release) implements Body {}

  /** Takes a release to its next stage. Nobody but the publisher signs it. */
  record Step(String release, int stage) implements Body {}

  record Entry(
      String logId, long seq, Hash prevHash, long epoch, int rootVersion, long publishedAt, Body body) {}

  record Op(String target, String source, String key, String action) {}

  record Proposal(
      String logId,
      String proposalId,
      String requester,
      long createdAt,
      long expiresAt,
      String kind,
      String title,
      String reason,
      String ticket,
      List<Op> ops,
      Long activateAt,
      Long leadMs,
      Integer ackedPercent,
      long minPin) {}

  record Approval(String logId, Hash proposalSha256, String approver, String decision, long expiresAt) {}

  record RootKey(String keyId, String algorithm, byte[] publicKey, String person) {}

  record RoleGrant(List<String> keyIds, int threshold) {}

  record RootRecord(
      String logId,
      int version,
      Hash prevRootSha256,
      long anchorSeq,
      Hash anchorHash,
      long expiresAt,
      List<RootKey> keys,
      Map<String, RoleGrant> roles,
      String fractional,
      String policy,
      List<String> revoked) {}

  private final Map<String, Schema> schemas = new HashMap<>();
  private final Hash entryFingerprint;

  Codec(Path directory) throws IOException {
    for (String name : List.of("envelope", "entry", "proposal", "approval", "root")) {
      // A parser of its own for each: entry.avsc has an Envelope as well.
      schemas.put(name, new Schema.Parser().parse(directory.resolve(name + ".avsc").toFile()));
    }
    String canonical = SchemaNormalization.toParsingForm(schemas.get("entry"));
    entryFingerprint = Hash.of(canonical.getBytes(StandardCharsets.UTF_8));
  }

  static String payloadType(String name) {
    return TYPE_PREFIX + name + ".v1+avro";
  }

  /** Returns SHA-256 of the schema of entries in Parsing Canonical Form, as an envelope's schema_sha256 has it. */
  Hash entryFingerprint() {
    return entryFingerprint;
  }

  Envelope envelope(byte[] data) throws Refusal {
    if (data == null || data.length > ENVELOPE_BYTES_MAX) {
      throw new Refusal("too_large", "envelope: want 1 .. %d bytes", ENVELOPE_BYTES_MAX);
    }
    return envelope(decode("envelope", data));
  }

  Entry entry(byte[] payload) throws Refusal {
    GenericRecord r = decode("entry", payload);
    return new Entry(
        form("log_id", LOG_ID, r.get("log_id")),
        natural("seq", r.get("seq")),
        hash("prev_hash", r.get("prev_hash")),
        (Long) r.get("epoch"),
        (Integer) r.get("root_version"),
        moment("published_at", r.get("published_at")),
        body((GenericRecord) r.get("body")));
  }

  Proposal proposal(byte[] payload) throws Refusal {
    GenericRecord r = decode("proposal", payload);
    List<GenericRecord> given = records(r.get("ops"));
    if (given.isEmpty() || given.size() > OPS_MAX) {
      throw new Refusal("too_large", "proposal: want 1 .. %d ops, got %d", OPS_MAX, given.size());
    }
    String logId = form("log_id", LOG_ID, r.get("log_id"));
    String proposalId = text("proposal_id", r.get("proposal_id"), 64);
    String requester = form("requester", PERSON, r.get("requester"));
    long createdAt = moment("created_at", r.get("created_at"));
    long expiresAt = moment("expires_at", r.get("expires_at"));
    String title = text("title", r.get("title"), TITLE_CHARS_MAX);
    String reason = text("reason", r.get("reason"), REASON_CHARS_MAX);
    String ticket = r.get("ticket") == null ? null : text("ticket", r.get("ticket"), TITLE_CHARS_MAX);
    List<Op> ops = new ArrayList<>();
    for (GenericRecord op : given) {
      String action = op.get("action").toString();
      if ((op.get("definition") == null) == action.equals("PUT")) {
        throw Refusal.malformed("op %s: want a definition for PUT and none otherwise", action);
      }
      String source = form("source", SOURCE, op.get("source"));
      String key = form("flag key", KEY, op.get("key"));
      natural("expected_version", op.get("expected_version"));
      ops.add(new Op(op.get("target").toString(), source, key, action));
    }
    Long activateAt = r.get("activate_at") == null ? null : (Long) moment("activate_at", r.get("activate_at"));
    Long leadMs = r.get("lead_ms") == null ? null : (Long) moment("lead_ms", r.get("lead_ms"));
    return new Proposal(
        logId, proposalId, requester, createdAt, expiresAt, r.get("kind").toString(), title, reason, ticket, ops,
        activateAt, leadMs, (Integer) r.get("acked_percent"), natural("min_pin", r.get("min_pin")));
  }

  Approval approval(byte[] payload) throws Refusal {
    GenericRecord r = decode("approval", payload);
    String logId = form("log_id", LOG_ID, r.get("log_id"));
    Hash proposal = hash("proposal_sha256", r.get("proposal_sha256"));
    String approver = form("approver", PERSON, r.get("approver"));
    moment("approved_at", r.get("approved_at"));
    long expiresAt = moment("expires_at", r.get("expires_at"));
    if (r.get("comment") != null) {
      text("comment", r.get("comment"), REASON_CHARS_MAX);
    }
    return new Approval(logId, proposal, approver, r.get("decision").toString(), expiresAt);
  }

  RootRecord root(byte[] payload) throws Refusal {
    GenericRecord r = decode("root", payload);
    Map<String, RoleGrant> roles = new HashMap<>();
    for (GenericRecord grant : records(r.get("roles"))) {
      List<String> ids = new ArrayList<>();
      for (Object id : (List<?>) grant.get("key_ids")) {
        ids.add(form("key_id", KEY_ID, id));
      }
      if (roles.put(grant.get("role").toString(), new RoleGrant(ids, (Integer) grant.get("threshold"))) != null) {
        throw Refusal.malformed("root: role %s is listed twice", grant.get("role"));
      }
    }
    List<RootKey> keys = new ArrayList<>();
    for (GenericRecord key : records(r.get("keys"))) {
      keys.add(
          new RootKey(
              form("key_id", KEY_ID, key.get("key_id")),
              key.get("algorithm").toString(),
              bytes(key.get("public")),
              form("person", PERSON, key.get("person"))));
    }
    List<String> revoked = new ArrayList<>();
    for (GenericRecord one : records(r.get("revoked"))) {
      revoked.add(form("key_id", KEY_ID, one.get("key_id")));
      text("reason", one.get("reason"), REASON_CHARS_MAX);
      if (one.get("distrust_from_seq") != null) {
        natural("distrust_from_seq", one.get("distrust_from_seq"));
      }
    }
    return new RootRecord(
        form("log_id", LOG_ID, r.get("log_id")),
        (Integer) r.get("version"),
        hash("prev_root_sha256", r.get("prev_root_sha256")),
        natural("anchor_seq", r.get("anchor_seq")),
        hash("anchor_hash", r.get("anchor_hash")),
        moment("expires_at", r.get("expires_at")),
        keys,
        roles,
        text("fractional", r.get("fractional"), TITLE_CHARS_MAX),
        text("policy", r.get("policy"), POLICY_CHARS_MAX),
        revoked);
  }

  /** Reads exactly one record: bytes that are left over would be signed by somebody and seen by nobody. */
  private GenericRecord decode(String name, byte[] data) throws Refusal {
    try {
      BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(data, null);
      GenericRecord found = new GenericDatumReader<GenericRecord>(schemas.get(name)).read(null, decoder);
      if (!decoder.isEnd()) {
        throw Refusal.malformed("%s: trailing bytes", name);
      }
      return found;
    } catch (IOException | RuntimeException error) {
      // Avro throws whatever its input leads it to: all of it says "not such bytes".
      throw Refusal.malformed("%d bytes are not Avro of %s: %s", data.length, name, error);
    }
  }

  private static Body body(GenericRecord r) throws Refusal {
    switch (r.getSchema().getName()) {
      case "Release":
        return release(r);
      case "Preparation":
        return new Preparation(release((GenericRecord) r.get("release")));
      case "Step":
        natural("expected_version", r.get("expected_version"));
        return new Step(form("flag key", KEY, r.get("release")), (Integer) r.get("stage"));
      case "RootUpdate":
        return new RootUpdate(envelope((GenericRecord) r.get("root")));
      case "Ratification":
        return new Ratification(hash("proposal_sha256", r.get("proposal_sha256")), approvals(r.get("approvals")));
      default:
        return new EpochClaim(text("holder", r.get("holder"), TITLE_CHARS_MAX));
    }
  }

  private static Release release(GenericRecord r) throws Refusal {
    return new Release(
        envelope((GenericRecord) r.get("proposal")),
        approvals(r.get("approvals")),
        text("policy", r.get("policy"), TITLE_CHARS_MAX));
  }

  private static Envelope envelope(GenericRecord r) throws Refusal {
    List<GenericRecord> given = records(r.get("signatures"));
    if (given.size() > SIGNATURES_MAX) {
      throw new Refusal("too_large", "envelope: at most %d signatures, got %d", SIGNATURES_MAX, given.size());
    }
    List<Signature> signatures = new ArrayList<>();
    for (GenericRecord one : given) {
      signatures.add(new Signature(form("key_id", KEY_ID, one.get("key_id")), bytes(one.get("signature"))));
    }
    return new Envelope(
        string("payload_type", r.get("payload_type")),
        hash("schema_sha256", r.get("schema_sha256")),
        bytes(r.get("payload")),
        signatures);
  }

  private static List<Envelope> approvals(Object value) throws Refusal {
    List<GenericRecord> given = records(value);
    if (given.size() > APPROVALS_MAX) {
      throw new Refusal("too_large", "at most %d approvals, got %d", APPROVALS_MAX, given.size());
    }
    List<Envelope> found = new ArrayList<>();
    for (GenericRecord one : given) {
      found.add(envelope(one));
    }
    return found;
  }

  @SuppressWarnings("unchecked") // the schema says so
  private static List<GenericRecord> records(Object value) {
    return (List<GenericRecord>) value;
  }

  private static byte[] bytes(Object value) {
    ByteBuffer buffer = ((ByteBuffer) value).duplicate();
    byte[] found = new byte[buffer.remaining()];
    buffer.get(found);
    return found;
  }

  private static Hash hash(String name, Object value) throws Refusal {
    byte[] found = bytes(value);
    if (found.length != Hash.BYTES) {
      throw Refusal.malformed("%s: want %d bytes, got %d", name, Hash.BYTES, found.length);
    }
    return new Hash(found);
  }

  private static long moment(String name, Object value) throws Refusal {
    long found = (Long) value;
    if (found < 0 || found >= 1L << 53) {
      throw Refusal.malformed("%s: want Unix milliseconds, got %d", name, found);
    }
    return found;
  }

  private static long natural(String name, Object value) throws Refusal {
    long found = (Long) value;
    if (found < 0) {
      throw Refusal.malformed("%s: want 0 or more, got %d", name, found);
    }
    return found;
  }

  private static String form(String name, Pattern wanted, Object value) throws Refusal {
    String found = string(name, value);
    if (!wanted.matcher(found).matches()) {
      throw Refusal.malformed("%s: got %.80s", name, found);
    }
    return found;
  }

  private static String text(String name, Object value, int charsMax) throws Refusal {
    String found = string(name, value);
    int chars = found.codePointCount(0, found.length());
    if (chars > charsMax) {
      throw new Refusal("too_large", "%s: at most %d characters, got %d", name, charsMax, chars);
    }
    return found;
  }

  /** Decodes strictly: Avro would put a replacement character where there is no UTF-8. */
  private static String string(String name, Object value) throws Refusal {
    Utf8 raw = (Utf8) value;
    try {
      ByteBuffer bytes = ByteBuffer.wrap(raw.getBytes(), 0, raw.getByteLength());
      return StandardCharsets.UTF_8.newDecoder().decode(bytes).toString();
    } catch (CharacterCodingException error) {
      throw Refusal.malformed("%s: want UTF-8", name);
    }
  }
}
