import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/**
 * Follows one ledger from its first entry on: bytes go in, an account of each entry comes out.
 *
 * <p>Its state is the chain's and the root's: definitions are not folded and policies not evaluated.
 */
final class Chain {
  private static final long FIRST_EPOCH = 1;
  private static final long EMERGENCY_LIFE_MS_MAX = 10 * 60_000;
  private static final int EMERGENCY_FLAGS_MAX = 50;
  private static final long LEAD_MS_MAX = 5 * 60_000;
  // The kind of an entry that publishes a proposal, by that one's.
  private static final Map<String, String> KINDS =
      Map.of("CHANGE", "change", "ROLLBACK", "rollback", "DRILL", "drill", "EMERGENCY", "emergency");

  private record Emergency(long seq, Codec.Proposal proposal) {}

  private final Codec codec;
  private final Origins.Beginning beginning;
  private Root root;
  private long head;
  private Hash headHash = Hash.ZERO;
  private long epoch = FIRST_EPOCH;
  private long publishedAt;
  private final List<Hash> hashes = new ArrayList<>();
  private final TreeMap<Long, Long> epochStarts = new TreeMap<>();
  private final Map<Hash, Emergency> unratified = new HashMap<>();
  // A proposal that was prepared: when it expires.
  private final Map<Hash, Long> prepared = new HashMap<>();
  private final Set<String> forgers = new HashSet<>();
  private boolean quarantined;
  private long furthestGap;
  private long gapAfter;
  private String gapFrom;
  private String fork;
  // Records by what became of them. What nobody signed is counted and not kept.
  private long records;
  private long entries;
  private long dropped;
  private long repeated;
  private long voided;
  private long gaps;
  private long forks;

  Chain(Codec codec, Origins.Beginning beginning) {
    this.codec = codec;
    this.beginning = beginning;
  }

  /**
   * Judges the next record of the topic.
   *
   * <p>The order of checks is docs/protocol.md's: nothing that nobody signed leads further than to the count of such.
   *
   * @return the account of the entry that it adds to the chain, or null
   */
  Account take(long position, byte[] data) throws NotUnderstood {
    records++;
    try {
      Codec.Envelope envelope = codec.envelope(data);
      if (root == null) {
        return genesis(envelope);
      }
      List<Codec.RootKey> publishers = Signatures.verifiedKeys(envelope, root.keysOf(Root.PUBLISHER));
      Codec.Entry entry = publishers.isEmpty() ? unlistedEntry(envelope) : publisherEntry(envelope, root);
      Hash hash = Signatures.digest(envelope);
      if (entry.seq() <= head) {
        judgePast(position, entry, hash, publishers);
      } else if (entry.seq() != head + 1) {
        gap(position, entry.seq());
      } else if (!entry.prevHash().equals(headHash)) {
        forked(position, publishers, "seq " + entry.seq() + " follows " + entry.prevHash() + ", want " + headHash);
      } else if (entry.epoch() != epoch + (entry.body().opensEpoch() ? 1 : 0)) {
        voided++;
      } else {
        Account account = judge(entry, hash);
        if (account.refused != null && publishers.isEmpty()) {
          dropped++; // a publisher to be extends the chain by the root that makes it one, only
          return null;
        }
        advance(account);
        return account;
      }
    } catch (Refusal refusal) {
      dropped++;
    }
    return null;
  }

  /** Says why what was read is not a whole chain up to its head; null when it is. */
  String broken() {
    List<String> found = new ArrayList<>();
    if (root == null) {
      return "no entry states the root that is trusted: another ledger, or none";
    }
    if (furthestGap > head) {
      found.add(gapFrom);
    }
    if (quarantined) {
      found.add(fork);
    }
    if (root.record.version() < beginning.version()) {
      found.add(
          "root version " + beginning.version() + " is trusted, version " + root.record.version()
              + " is in force at the end: entries are withheld, or the topic was cut");
    }
    return found.isEmpty() ? null : String.join("; ", found);
  }

  /** Returns the count of records, as one line of JSON. */
  String summary() {
    Json json = new Json();
    json.add("records", records);
    json.add("entries", entries);
    json.add("dropped", dropped);
    json.add("repeated", repeated);
    json.add("void", voided);
    json.add("gap", gaps);
    json.add("forked", forks);
    json.add("head", head);
    json.add("head_hash", headHash);
    return json.toString();
  }

  /** Takes the entry that states the first root: the one that is trusted, or that the trusted one leads to. */
  private Account genesis(Codec.Envelope envelope) throws Refusal, NotUnderstood {
    if (!envelope.payloadType().equals(Codec.payloadType("entry"))) {
      throw Refusal.malformed("want an entry, got %.100s", envelope.payloadType());
    }
    Codec.Entry entry = codec.entry(envelope.payload());
    if (!(entry.body() instanceof Codec.RootUpdate update)
        || !Signatures.digest(update.root()).equals(beginning.first())) {
      throw new Refusal("wrong_root", "entry %d does not state root %s", entry.seq(), beginning.first());
    }
    Root first = Root.verified(codec, update.root());
    if (Signatures.verifiedKeys(envelope, first.keysOf(Root.PUBLISHER)).isEmpty()) {
      throw new Refusal("bad_signature", "entry 1 is not signed by a publisher");
    }
    publisherEntry(envelope, first);
    if (entry.seq() != 1 || entry.epoch() != FIRST_EPOCH || !entry.prevHash().isZero()) {
      throw Refusal.malformed("want entry 1 of epoch %d", FIRST_EPOCH);
    }
    Account account = new Account(entry, Signatures.digest(envelope));
    account.stateRoot(first, first.peopleSigning(Root.ROOT, first.envelope));
    advance(account);
    return account;
  }

  /** Returns the entry in an envelope that a publisher of a root has signed. */
  private Codec.Entry publisherEntry(Codec.Envelope envelope, Root judge) throws Refusal, NotUnderstood {
    if (!envelope.payloadType().startsWith(Codec.TYPE_PREFIX)) {
      throw Refusal.malformed("want an entry, got %.100s", envelope.payloadType());
    }
    if (!envelope.payloadType().equals(Codec.payloadType("entry"))) {
      throw new NotUnderstood("payload type %.100s", envelope.payloadType());
    }
    if (!envelope.schemaSha256().equals(codec.entryFingerprint())) {
      throw Refusal.malformed("schema: want %s, got %s", codec.entryFingerprint(), envelope.schemaSha256());
    }
    Codec.Entry entry = codec.entry(envelope.payload());
    if (!entry.logId().equals(judge.record.logId())) {
      throw new Refusal("wrong_log", "expected %s, got %s", judge.record.logId(), entry.logId());
    }
    if (entry.seq() < 1) {
      throw Refusal.malformed("entry: want a seq of at least 1, got %d", entry.seq());
    }
    return entry;
  }

  /**
   * Returns an entry that no publisher of the root in force has signed, if it counts all the same: it is a copy of one in
   * the chain, or it states the next root, and a publisher of that root has signed it. Such an entry may also be the
   * proof that this reader follows the wrong history.
   */
  private Codec.Entry unlistedEntry(Codec.Envelope envelope) throws Refusal, NotUnderstood {
    Refusal unsigned = new Refusal("bad_signature", "no publisher has signed it");
    if (!envelope.payloadType().equals(Codec.payloadType("entry"))) {
      throw unsigned;
    }
    Codec.Entry entry = publisherEntry(envelope, root);
    if (entry.seq() <= head && Signatures.digest(envelope).equals(hashAt(entry.seq()))) {
      return entry;
    }
    if (!(entry.body() instanceof Codec.RootUpdate update)) {
      throw unsigned;
    }
    // First, since it is cheap: whoever writes to the topic could else have every reader check a thousand keys.
    if (root.peopleSigning(Root.ROOT, update.root()).size() < root.grant(Root.ROOT).threshold()) {
      throw unsigned;
    }
    Root next = root.successor(codec, update.root());
    if (Signatures.verifiedKeys(envelope, next.keysOf(Root.PUBLISHER)).isEmpty()) {
      throw unsigned;
    }
    return entry;
  }

  /** An entry at a place that is filled is a copy, the late word of a publisher that lost it, or a fork. */
  private void judgePast(long position, Codec.Entry entry, Hash hash, List<Codec.RootKey> signers) {
    Hash before = hashAt(entry.seq() - 1);
    if (hash.equals(hashAt(entry.seq()))) {
      repeated++;
    } else if (!entry.prevHash().equals(before)) {
      forked(position, signers, "seq " + entry.seq() + " follows " + entry.prevHash() + ", want " + before);
    } else if (entry.epoch() < epochStarts.floorEntry(entry.seq()).getValue() || entry.body().opensEpoch()) {
      voided++;
    } else {
      forked(position, signers, "seq " + entry.seq() + " is " + hash + ", want " + hashAt(entry.seq()));
    }
  }

  private void gap(long position, long seq) {
    gaps++;
    if (furthestGap <= head || gapAfter != head) {
      gapAfter = head;
      gapFrom =
          "record at position " + position + ": expected seq " + (head + 1) + ", got " + seq + ": entries are missing";
    }
    furthestGap = Math.max(furthestGap, seq);
  }

  private void forked(long position, List<Codec.RootKey> signers, String what) {
    forks++;
    if (!quarantined) {
      quarantined = true;
      fork = "record at position " + position + ": another history, signed by a publisher's key: " + what;
    }
    for (Codec.RootKey key : signers) {
      forgers.add(key.keyId());
    }
  }

  /** Says what the entry after the head does. A Refusal makes it a rejected one, which is a link all the same. */
  private Account judge(Codec.Entry entry, Hash hash) throws NotUnderstood {
    Account account = new Account(entry, hash);
    try {
      checkFrame(entry);
      if (entry.body() instanceof Codec.EpochClaim claim) {
        account.kind = "epoch";
        account.holder = claim.holder();
      } else if (entry.body() instanceof Codec.RootUpdate update) {
        judgeRoot(entry, update, account);
      } else if (entry.body() instanceof Codec.Release release) {
        judgeRelease(entry, release, account);
      } else if (entry.body() instanceof Codec.Preparation preparation) {
        judgePreparation(entry, preparation, account);
      } else if (entry.body() instanceof Codec.Step) {
        // What it does, the plan in force says; who holds no plans can only say that the publisher took it.
        account.kind = "step";
      } else if (entry.body() instanceof Codec.Ratification ratification) {
        judgeRatification(entry, ratification, account);
      }
      return account;
    } catch (Refusal refusal) {
      return rejected(entry, hash, refusal);
    }
  }

  private void checkFrame(Codec.Entry entry) throws Refusal {
    if (entry.rootVersion() != root.record.version()) {
      throw new Refusal("wrong_root", "expected version %d, got %d", root.record.version(), entry.rootVersion());
    }
    // An expired root allows nothing but its successor, which the same people sign.
    if (!(entry.body() instanceof Codec.RootUpdate) && entry.publishedAt() > root.record.expiresAt()) {
      throw new Refusal("expired", "root version %d expired", root.record.version());
    }
    if (entry.publishedAt() < publishedAt) {
      throw new Refusal("expired", "published at %d, predecessor at %d", entry.publishedAt(), publishedAt);
    }
  }

  private void judgeRoot(Codec.Entry entry, Codec.RootUpdate update, Account account) throws Refusal {
    Root next = successor(update.root());
    if (entry.publishedAt() > next.record.expiresAt()) {
      throw new Refusal("expired", "root version %d expired", next.record.version());
    }
    List<Codec.RootKey> keys = new ArrayList<>(root.keysOf(Root.ROOT));
    keys.addAll(next.keysOf(Root.ROOT));
    account.stateRoot(next, Root.people(Signatures.verifiedKeys(next.envelope, keys)));
  }

  /** Returns the next root: the trusted one of its version, if there is one, whose signers saw this very history. */
  private Root successor(Codec.Envelope envelope) throws Refusal {
    Root next = root.successor(codec, envelope);
    Hash pinned = beginning.pinned().get(next.record.version());
    if (pinned != null && !pinned.equals(next.sha256)) {
      throw new Refusal("wrong_root", "expected %s, got %s", pinned, next.sha256);
    }
    long anchor = next.record.anchorSeq();
    if (anchor > head || !hashAt(anchor).equals(next.record.anchorHash())) {
      throw new Refusal("wrong_root", "its signers saw entry %s at seq %d", next.record.anchorHash(), anchor);
    }
    return next;
  }

  private void judgeRelease(Codec.Entry entry, Codec.Release release, Account account) throws Refusal, NotUnderstood {
    judgeProposed(entry, release, account);
    account.kind = KINDS.get(account.proposal.kind());
    if (account.proposal.ackedPercent() != null && !prepared.containsKey(account.proposalSha256)) {
      throw new Refusal("not_approved", "it asks for acknowledgements, and no entry has prepared it");
    }
  }

  private void judgePreparation(Codec.Entry entry, Codec.Preparation body, Account account)
      throws Refusal, NotUnderstood {
    judgeProposed(entry, body.release(), account);
    account.kind = "preparation";
    account.moment = null;
    if (account.proposal.ackedPercent() == null) {
      throw new Refusal("bad_definition", "want a proposal prepared that asks for acknowledgements, this one does not");
    }
  }

  /** Says whether a proposal may be published now, or prepared to be. */
  private void judgeProposed(Codec.Entry entry, Codec.Release release, Account account) throws Refusal, NotUnderstood {
    Codec.Proposal proposal = verifiedProposal(release.proposal());
    checkKind(proposal);
    if (entry.publishedAt() > proposal.expiresAt()) {
      throw new Refusal("expired", "proposal %s expired at %d", proposal.proposalId(), proposal.expiresAt());
    }
    account.propose(proposal, Signatures.digest(release.proposal()));
    account.policy = release.policy();
    checkPeople(entry, release, account);
    if (proposal.minPin() > entry.seq()) {
      throw new Refusal("bad_definition", "min_pin: want at most %d, got %d", entry.seq(), proposal.minPin());
    }
    account.moment = momentOf(proposal, entry.publishedAt());
    checkRollback(proposal);
    checkRule(release, account);
  }

  /** Refuses what too few people stand behind. A kill and a rehearsal wait for nobody. */
  private void checkPeople(Codec.Entry entry, Codec.Release release, Account account) throws Refusal {
    Codec.Proposal proposal = account.proposal;
    boolean emergency = proposal.kind().equals("EMERGENCY");
    if (!emergency && !proposal.kind().equals("DRILL")) {
      account.approvers.addAll(
          countedApprovers(proposal, account.proposalSha256, release.approvals(), entry.publishedAt()));
      account.checked.add("approvers");
      return;
    }
    if (emergency && proposal.createdAt() > entry.publishedAt() + EMERGENCY_LIFE_MS_MAX) {
      throw new Refusal("bad_definition", "an emergency dated ahead, at %d", proposal.createdAt());
    }
    if (!release.approvals().isEmpty()) {
      throw new Refusal(
          "not_approved", "want %s without approvals, got %d", proposal.kind(), release.approvals().size());
    }
  }

  /** Refuses an entry that names another rule than the one that allowed it, as far as that needs no policy. */
  private void checkRule(Codec.Release release, Account account) throws Refusal {
    String kind = account.proposal.kind();
    String wanted = "approvals>=" + root.grant(Root.APPROVER).threshold();
    if (kind.equals("EMERGENCY") || kind.equals("DRILL")) {
      wanted = kind.equals("DRILL") ? "drill" : "emergency";
    } else if (!root.record.policy().isEmpty()) {
      return; // which rule of a policy allows a change is the verifier's to say: the name is the publisher's claim
    }
    if (!release.policy().equals(wanted)) {
      throw new Refusal("not_approved", "policy: want %s, got %s", wanted, release.policy());
    }
    account.checked.add("policy");
  }

  private void judgeRatification(Codec.Entry entry, Codec.Ratification body, Account account) throws Refusal {
    account.kind = "ratification";
    Emergency ratified = unratified.get(body.proposalSha256());
    if (ratified == null) {
      throw new Refusal("not_approved", "no emergency with digest %s waits to be ratified", body.proposalSha256());
    }
    account.approvers.addAll(
        countedApprovers(ratified.proposal, body.proposalSha256(), body.approvals(), entry.publishedAt()));
    account.proposalSha256 = body.proposalSha256();
    account.ratifies = ratified.seq;
    account.checked.add("approvers");
  }

  /** Returns a proposal that the person who it says asks has signed, in the role that this takes. */
  private Codec.Proposal verifiedProposal(Codec.Envelope envelope) throws Refusal {
    if (!envelope.payloadType().equals(Codec.payloadType("proposal"))) {
      throw Refusal.malformed("want a proposal, got %.100s", envelope.payloadType());
    }
    if (Signatures.verifiedKeys(envelope, root.keysOf(Root.REQUESTER, Root.EMERGENCY)).isEmpty()) {
      throw new Refusal("bad_signature", "nobody who may propose has signed the proposal");
    }
    Codec.Proposal proposal = codec.proposal(envelope.payload());
    checkLog(proposal.logId());
    String role = proposal.kind().equals("EMERGENCY") ? Root.EMERGENCY : Root.REQUESTER;
    Set<String> signed = root.peopleSigning(role, envelope);
    if (!signed.contains(proposal.requester())) {
      throw new Refusal("wrong_role", "%s by %s, signed by %s", proposal.kind(), proposal.requester(), signed);
    }
    return proposal;
  }

  /** Returns an approval, or rejection, that the person whom it names has signed. */
  private Codec.Approval verifiedApproval(Codec.Envelope envelope) throws Refusal {
    if (!envelope.payloadType().equals(Codec.payloadType("approval"))) {
      throw Refusal.malformed("want an approval, got %.100s", envelope.payloadType());
    }
    Set<String> signed = root.peopleSigning(Root.APPROVER, envelope);
    if (signed.isEmpty()) {
      throw new Refusal("bad_signature", "nobody who may approve has signed the approval");
    }
    Codec.Approval approval = codec.approval(envelope.payload());
    checkLog(approval.logId());
    if (!signed.contains(approval.approver())) {
      throw new Refusal("wrong_role", "approval by %s, signed by %s", approval.approver(), signed);
    }
    return approval;
  }

  private void checkLog(String logId) throws Refusal {
    if (!logId.equals(root.record.logId())) {
      throw new Refusal("wrong_log", "expected %s, got %s", root.record.logId(), logId);
    }
  }

  /**
   * Returns who approved exactly this proposal: all of these count, and they are as many people as the root asks for.
   */
  private Collection<String> countedApprovers(
      Codec.Proposal proposal, Hash sha256, List<Codec.Envelope> envelopes, long at) throws Refusal {
    List<Codec.Approval> approvals = new ArrayList<>();
    for (Codec.Envelope envelope : envelopes) {
      approvals.add(verifiedApproval(envelope));
    }
    List<String> approvers = new ArrayList<>();
    for (Codec.Approval approval : approvals) {
      String approver = approval.approver();
      if (!approval.proposalSha256().equals(sha256)) {
        throw new Refusal("bad_signature", "%s approved %s, this is %s", approver, approval.proposalSha256(), sha256);
      } else if (!approval.decision().equals("APPROVE")) {
        throw new Refusal("not_approved", "%s rejected it", approver);
      } else if (approver.equals(proposal.requester())) {
        throw new Refusal("same_person", "%s both requested and approved it", approver);
      } else if (at > approval.expiresAt()) {
        throw new Refusal("expired", "the approval by %s expired at %d", approver, approval.expiresAt());
      }
      approvers.add(approver);
    }
    int people = new HashSet<>(approvers).size();
    int threshold = root.grant(Root.APPROVER).threshold();
    if (people != approvers.size() || people < threshold) {
      throw new Refusal("not_approved", "want approvals of %d people, each once, got %s", threshold, approvers);
    }
    return approvers;
  }

  /**
   * Refuses a kill outside of an emergency, an emergency that is anything but a kill, a drill that is anything but a
   * rehearsal, and a moment that cannot be.
   */
  private static void checkKind(Codec.Proposal proposal) throws Refusal, NotUnderstood {
    int kills = 0;
    int drills = 0;
    for (Codec.Op op : proposal.ops()) {
      if (op.target().equals("POLICY")) {
        throw new NotUnderstood("proposal %s: op %s of %s", proposal.proposalId(), op.action(), op.target());
      }
      kills += op.action().equals("KILL") ? 1 : 0;
      drills += op.target().equals("DRILL") ? 1 : 0;
    }
    checkMoment(proposal);
    int ops = proposal.ops().size();
    boolean emergency = proposal.kind().equals("EMERGENCY");
    if (drills != (proposal.kind().equals("DRILL") ? ops : 0)) {
      throw bad(proposal, drills + " of " + ops + " ops on DRILL");
    }
    if (proposal.kind().equals("DRILL") && proposal.minPin() > 0) {
      throw bad(proposal, "min_pin " + proposal.minPin());
    }
    if (kills != (emergency ? ops : 0)) {
      throw bad(proposal, kills + " of " + ops + " ops kill");
    }
    if (kills > EMERGENCY_FLAGS_MAX) {
      throw bad(proposal, "more than " + EMERGENCY_FLAGS_MAX + " kills");
    }
    if (emergency && proposal.expiresAt() - proposal.createdAt() > EMERGENCY_LIFE_MS_MAX) {
      throw bad(proposal, "lives too long");
    }
    for (Codec.Op op : proposal.ops()) {
      if (op.action().equals("KILL") && !op.target().equals("FLAG") && !op.target().equals("RELEASE")) {
        throw bad(proposal, "KILL of " + op.target());
      }
    }
  }

  private static void checkMoment(Codec.Proposal proposal) throws Refusal {
    Long lead = proposal.leadMs();
    Integer acked = proposal.ackedPercent();
    if (proposal.activateAt() == null && lead == null && acked == null) {
      return;
    }
    if (proposal.kind().equals("EMERGENCY") || proposal.kind().equals("DRILL")) {
      throw bad(proposal, "want no moment");
    }
    if (proposal.activateAt() != null && lead != null) {
      throw bad(proposal, "want activate_at or lead_ms, got both");
    }
    if (lead != null && (lead < 1 || lead > LEAD_MS_MAX)) {
      throw bad(proposal, "want a lead_ms of 1 .. " + LEAD_MS_MAX + ", got " + lead);
    }
    if (acked != null && (acked < 1 || acked > 100)) {
      throw bad(proposal, "want an acked_percent of 1 .. 100, got " + acked);
    }
  }

  /** Returns when a proposal takes effect that is published at a time; null: at once. */
  private static Long momentOf(Codec.Proposal proposal, long at) throws Refusal {
    if (proposal.leadMs() != null) {
      return at + proposal.leadMs();
    }
    Long moment = proposal.activateAt();
    if (moment != null && at > moment) {
      throw new Refusal("expired", "it takes effect at %d, published at %d", moment, at);
    }
    if (moment != null && at < moment - LEAD_MS_MAX) {
      throw new Refusal("not_yet", "it takes effect at %d, published at %d", moment, at);
    }
    return moment;
  }

  /**
   * Refuses a rollback that does anything but set releases; whether it closes their gates, and restores what was before,
   * the definitions say.
   */
  private static void checkRollback(Codec.Proposal proposal) throws Refusal {
    for (Codec.Op op : proposal.ops()) {
      boolean sets = op.target().equals("RELEASE") && op.action().equals("PUT") && op.source().isEmpty();
      if (proposal.kind().equals("ROLLBACK") && !sets) {
        throw bad(proposal, "op " + op.action() + " of " + op.target());
      }
    }
  }

  private static Refusal bad(Codec.Proposal proposal, String what) {
    return new Refusal("bad_definition", "proposal %s, %s: %s", proposal.proposalId(), proposal.kind(), what);
  }

  /** Returns the account of an entry that changed nothing: only what its own signatures prove. */
  private Account rejected(Codec.Entry entry, Hash hash, Refusal why) {
    Account account = new Account(entry, hash);
    account.kind = "rejected";
    account.refused = why.code;
    List<Codec.Envelope> approvals = List.of();
    Hash of = null;
    Codec.Release release = entry.body().carried();
    if (release != null) {
      approvals = release.approvals();
      of = Signatures.digest(release.proposal());
      try {
        account.propose(verifiedProposal(release.proposal()), of);
      } catch (Refusal refusal) {
        account.proposal = null; // nobody stands behind it: what it says is nobody's word
      }
    } else if (entry.body() instanceof Codec.Ratification ratification) {
      approvals = ratification.approvals();
      of = ratification.proposalSha256();
    }
    account.proposalSha256 = of;
    for (Codec.Envelope envelope : approvals) {
      try {
        Codec.Approval approval = verifiedApproval(envelope);
        if (approval.proposalSha256().equals(of)) {
          account.approvers.add(approval.approver());
        }
      } catch (Refusal refusal) {
        continue;
      }
    }
    return account;
  }

  private void advance(Account account) {
    Codec.Entry entry = account.entry;
    switch (account.kind) {
      // Only a time that several people's expiries bound counts: a publisher alone could date a claim, or a step, years
      // ahead, and with one requester a drill.
      case "change", "rollback" -> {
        publishedAt = entry.publishedAt();
        prepared.remove(account.proposalSha256);
      }
      case "preparation" -> {
        prepared.values().removeIf(expiresAt -> expiresAt < entry.publishedAt());
        prepared.put(account.proposalSha256, account.proposal.expiresAt());
      }
      case "emergency" -> {
        publishedAt = entry.publishedAt();
        if (root.grant(Root.APPROVER).threshold() > 0) {
          unratified.put(account.proposalSha256, new Emergency(entry.seq(), account.proposal));
        }
      }
      case "ratification" -> {
        publishedAt = entry.publishedAt();
        unratified.remove(account.proposalSha256);
      }
      case "root" -> takeRoot(account.root);
      default -> { }
    }
    entries++;
    head = entry.seq();
    headHash = account.hash;
    epoch = entry.epoch();
    hashes.add(account.hash);
    if (epochStarts.isEmpty() || epochStarts.lastEntry().getValue() != epoch) {
      epochStarts.put(entry.seq(), epoch);
    }
  }

  /** Puts a root into force. Once no key that signed two histories can sign any more, a fork is over. */
  private void takeRoot(Root next) {
    root = next;
    Set<String> trusted = new HashSet<>(next.grant(Root.PUBLISHER).keyIds());
    trusted.addAll(next.grant(Root.HEARTBEAT).keyIds());
    forgers.retainAll(trusted);
    quarantined = quarantined && !forgers.isEmpty();
  }

  private Hash hashAt(long seq) {
    return seq == 0 ? Hash.ZERO : hashes.get((int) seq - 1);
  }
}
