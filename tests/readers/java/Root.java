import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;

/** Who may do what: a root whose keys, roles and place in the chain of roots have been checked. */
final class Root {
  static final String ROOT = "ROOT";
  static final String REQUESTER = "REQUESTER";
  static final String APPROVER = "APPROVER";
  static final String PUBLISHER = "PUBLISHER";
  static final String HEARTBEAT = "HEARTBEAT";
  static final String EMERGENCY = "EMERGENCY";

  private static final int KEYS_MAX = 1000;
  private static final Codec.RoleGrant NO_ONE = new Codec.RoleGrant(List.of(), 0);

  final Codec.RootRecord record;
  final Codec.Envelope envelope;
  final Hash sha256;

  /** Reads the root in an envelope, whose signatures are not checked yet. Its policy is not looked at. */
  private Root(Codec codec, Codec.Envelope envelope) throws Refusal {
    if (!envelope.payloadType().equals(Codec.payloadType("root"))) {
      throw Refusal.malformed("root: got %.100s", envelope.payloadType());
    }
    this.record = codec.root(envelope.payload());
    this.envelope = envelope;
    this.sha256 = Signatures.digest(envelope);
    checkPlace();
    checkKeys();
    checkRoles();
  }

  /** Returns the first root of a chain: signed by as many people as it asks for itself. */
  static Root verified(Codec codec, Codec.Envelope envelope) throws Refusal {
    Root root = new Root(codec, envelope);
    root.checkSignedBy(root);
    return root;
  }

  /** Returns the next version: signed by as many people as this one asks for, and the next one as well. */
  Root successor(Codec codec, Codec.Envelope envelope) throws Refusal {
    Root next = new Root(codec, envelope);
    if (!next.record.logId().equals(record.logId())) {
      throw new Refusal("wrong_log", "expected %s, got %s", record.logId(), next.record.logId());
    }
    if (next.record.version() != record.version() + 1 || !next.record.prevRootSha256().equals(sha256)) {
      throw Refusal.malformed(
          "root: want version %d after %s, got version %d after %s",
          record.version() + 1, sha256, next.record.version(), next.record.prevRootSha256());
    }
    if (!next.record.fractional().equals(record.fractional())) {
      throw Refusal.malformed("root: fractional: want %s as before", record.fractional());
    }
    if (!next.record.revoked().containsAll(record.revoked())) {
      throw Refusal.malformed("root: a key was revoked before, and is not any more");
    }
    next.checkSignedBy(this);
    next.checkSignedBy(next);
    return next;
  }

  Codec.RoleGrant grant(String role) {
    return record.roles().getOrDefault(role, NO_ONE);
  }

  /** Returns the keys that have any of these roles. */
  List<Codec.RootKey> keysOf(String... roles) {
    Set<String> ids = new HashSet<>();
    for (String role : roles) {
      ids.addAll(grant(role).keyIds());
    }
    List<Codec.RootKey> found = new ArrayList<>();
    for (Codec.RootKey key : record.keys()) {
      if (ids.contains(key.keyId())) {
        found.add(key);
      }
    }
    return found;
  }

  /** Returns, sorted, the people whose keys of a role verify on an envelope: people are counted, not keys. */
  Set<String> peopleSigning(String role, Codec.Envelope envelope) {
    return people(Signatures.verifiedKeys(envelope, keysOf(role)));
  }

  static Set<String> people(Collection<Codec.RootKey> keys) {
    Set<String> found = new TreeSet<>();
    for (Codec.RootKey key : keys) {
      found.add(key.person());
    }
    return found;
  }

  private void checkSignedBy(Root judge) throws Refusal {
    Set<String> signed = judge.peopleSigning(ROOT, envelope);
    int threshold = judge.grant(ROOT).threshold();
    if (signed.size() < threshold) {
      throw new Refusal(
          "not_approved", "root version %d: version %d asks for %d people with role ROOT, got %s",
          record.version(), judge.record.version(), threshold, signed);
    }
  }

  private void checkPlace() throws Refusal {
    boolean unlinked = record.prevRootSha256().isZero();
    boolean unanchored = record.anchorSeq() == 0;
    boolean good =
        record.version() == 1
            ? unlinked && unanchored && record.anchorHash().isZero()
            : record.version() > 1 && !unlinked && !unanchored;
    if (!good) {
      throw Refusal.malformed(
          "root: want version 1 without a predecessor and anchor, or a later one with both; got %d", record.version());
    }
    if (!Set.of("v2", "v3").contains(record.fractional())) {
      throw Refusal.malformed("root: fractional: got %.20s", record.fractional());
    }
  }

  private void checkKeys() throws Refusal {
    if (record.keys().isEmpty() || record.keys().size() > KEYS_MAX) {
      throw Refusal.malformed("root: want 1 .. %d keys, got %d", KEYS_MAX, record.keys().size());
    }
    Set<String> listed = new HashSet<>();
    Set<Hash> publicKeys = new HashSet<>();
    Set<String> names = new HashSet<>();
    for (Codec.RootKey key : record.keys()) {
      Signatures.checkPublic(key.algorithm(), key.publicKey());
      if (!key.keyId().equals(Signatures.keyId(key.algorithm(), key.publicKey()))) {
        throw Refusal.malformed("root: key %s is not the fingerprint of its public key", key.keyId());
      }
      // One public key under two algorithms has two fingerprints, and could pass for two people.
      if (!listed.add(key.keyId()) || !publicKeys.add(Hash.of(key.publicKey()))) {
        throw Refusal.malformed("root: key %s is listed twice", key.keyId());
      }
      for (String algorithm : List.of(Signatures.ED25519, Signatures.P256, Signatures.SSHSIG)) {
        names.add(Signatures.keyId(algorithm, key.publicKey()));
      }
    }
    Set<String> revoked = new HashSet<>();
    for (String id : record.revoked()) {
      if (!revoked.add(id) || names.contains(id)) {
        throw Refusal.malformed("root: revoked key %s is named twice, or listed", id);
      }
    }
  }

  private void checkRoles() throws Refusal {
    Set<String> listed = new HashSet<>();
    for (Codec.RootKey key : record.keys()) {
      listed.add(key.keyId());
    }
    for (String role : record.roles().keySet()) {
      Codec.RoleGrant grant = grant(role);
      if (!listed.containsAll(grant.keyIds())) {
        throw Refusal.malformed("root: role %s names keys that are not listed", role);
      }
      int holders = people(keysOf(role)).size();
      if (grant.threshold() < 0 || grant.threshold() > holders) {
        throw Refusal.malformed("root: role %s: threshold %d, but %d people hold it", role, grant.threshold(), holders);
      }
    }
    for (String role : List.of(ROOT, REQUESTER, PUBLISHER)) {
      if (grant(role).threshold() < 1) {
        throw Refusal.malformed("root: role %s: want a threshold of at least 1", role);
      }
    }
    for (String role : List.of(PUBLISHER, REQUESTER, HEARTBEAT, EMERGENCY)) {
      if (grant(role).threshold() != (grant(role).keyIds().isEmpty() ? 0 : 1)) {
        throw Refusal.malformed("root: role %s: want threshold 1, or 0 without keys", role);
      }
    }
  }
}
