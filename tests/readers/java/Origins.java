import java.util.HashMap;
import java.util.Map;

/**
 * Follows the chain of roots back from the trusted one to the first, through what a topic states.
 *
 * <p>Each root names its predecessor by digest, so that trust in one is trust in all before it, whoever wrote them down.
 */
final class Origins {
  /** Where a ledger must start, and which later roots it must reach; `version` is the trusted root's. */
  record Beginning(Hash first, int version, Map<Integer, Hash> pinned) {}

  private record Link(int version, Hash before) {}

  private final Codec codec;
  private final Map<Hash, Link> links = new HashMap<>();
  private final Map<Integer, Hash> pinned = new HashMap<>();
  private int version;
  private Hash wanted;
  private Beginning found;

  Origins(Codec codec, Hash trusted) {
    this.codec = codec;
    this.wanted = trusted;
  }

  /** Returns where to begin, or null as long as that is not known. */
  Beginning found() {
    return found;
  }

  /** Returns the root that the topic has not stated yet. */
  Hash wanted() {
    return wanted;
  }

  /** Looks at one record. */
  void take(byte[] data) {
    try {
      Codec.Envelope envelope = codec.envelope(data);
      if (!envelope.payloadType().equals(Codec.payloadType("entry"))) {
        return;
      }
      if (!(codec.entry(envelope.payload()).body() instanceof Codec.RootUpdate update)
          || !update.root().payloadType().equals(Codec.payloadType("root"))) {
        return;
      }
      Codec.RootRecord record = codec.root(update.root().payload());
      links.put(Signatures.digest(update.root()), new Link(record.version(), record.prevRootSha256()));
    } catch (Refusal refusal) {
      return;
    }
    for (Link link = links.get(wanted); link != null && found == null; link = links.get(wanted)) {
      version = Math.max(version, link.version);
      if (link.version == 1) {
        found = new Beginning(wanted, version, pinned);
        return;
      }
      pinned.put(link.version, wanted);
      wanted = link.before;
    }
  }
}
