import java.util.ArrayList;
import java.util.Collection;
import java.util.List;

/** One entry as it is printed. Of a rejected one it holds what is proven all the same. */
final class Account {
  final Codec.Entry entry;
  final Hash hash;
  final List<String> checked = new ArrayList<>(List.of("chain", "publisher"));
  final List<String> approvers = new ArrayList<>();
  String kind;
  Codec.Proposal proposal;
  Hash proposalSha256;
  String policy;
  Root root;
  Collection<String> rootSigners = List.of();
  /** Before which what it changed must not be served, Unix milliseconds; null: at once. */
  Long moment;
  Long ratifies;
  String holder;
  String refused;

  Account(Codec.Entry entry, Hash hash) {
    this.entry = entry;
    this.hash = hash;
  }

  void stateRoot(Root root, Collection<String> signers) {
    this.kind = "root";
    this.root = root;
    this.rootSigners = signers;
    checked.add("root");
  }

  /** Takes a proposal whose requester has signed it. */
  void propose(Codec.Proposal proposal, Hash sha256) {
    this.proposal = proposal;
    this.proposalSha256 = sha256;
    checked.add("requester");
  }

  /** Returns the entry as one line of JSON: ASCII, no spaces, all fields in this order. */
  String line() {
    Json json = new Json();
    json.add("seq", entry.seq());
    json.add("entry_hash", hash);
    json.add("prev_hash", entry.prevHash());
    json.add("epoch", entry.epoch());
    json.add("root_version", (long) entry.rootVersion());
    json.add("published_at", entry.publishedAt());
    json.add("kind", kind);
    json.add("proposal_id", proposal == null ? null : proposal.proposalId());
    json.add("proposal_sha256", proposalSha256);
    json.add("requester", proposal == null ? null : proposal.requester());
    json.add("approvers", approvers);
    json.add("policy", policy);
    json.add("title", proposal == null ? null : proposal.title());
    json.add("reason", proposal == null ? null : proposal.reason());
    json.add("ticket", proposal == null ? null : proposal.ticket());
    json.add("ops", proposal == null ? List.of() : ops());
    json.add("moment", moment);
    Codec.Step step = entry.body() instanceof Codec.Step taken ? taken : null;
    json.add("release", step == null ? null : step.release());
    json.add("stage", step == null ? null : (Long) (long) step.stage());
    json.add("new_root_version", root == null ? null : (Long) (long) root.record.version());
    json.add("new_root_sha256", root == null ? null : root.sha256);
    json.add("root_signers", rootSigners);
    json.add("ratifies", ratifies);
    json.add("holder", holder);
    json.add("refused", refused);
    json.add("checked", checked);
    return json.toString();
  }

  private List<Json> ops() {
    List<Json> found = new ArrayList<>();
    for (Codec.Op op : proposal.ops()) {
      Json json = new Json();
      json.add("target", op.target());
      json.add("source", op.source());
      json.add("key", op.key());
      json.add("action", op.action());
      found.add(json);
    }
    return found;
  }
}
