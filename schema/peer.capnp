@0xc82c1f8dce4c551d;
# The protocol between nodes. Operations are batched as in client.capnp. PeerRequest, PeerReply and
# their fields in crates/core/src/request/peer.rs describe each operation and result.

using Client = import "client.capnp";

interface Peer {
  exchange @0 (operations :List(Operation)) -> (results :List(Result));
}

struct Operation {
  id @0 :UInt64;
  timeoutMs @1 :UInt32;
  union {
    ping @2 :Void;
    read @3 :Data;
    # A storage key.
    write @4 :Write;
    scan @5 :Scan;
    forward @6 :Client.Operation;
    # A client's request. The sender is the node that received it, and is no replica of the key.
    readHints @7 :Data;
    # A storage key. The reply is one object, merged from the peer's hints for this key.
    fetch @8 :Data;
    # A storage key. The read is for repair, never for a client, so a replica that recovers answers
    # it too.
    roots @9 :List(TreeRoot);
    leaves @10 :Tree;
    digests @11 :DigestsOf;
    durableDigests @12 :List(Data);
    mayCollect @13 :List(Data);
    collectTombstones @14 :CollectTombstones;
    clock @15 :Void;
    gossip @16 :Data;
    # A message of the membership plugin.
    layoutSummary @18 :Data;
    # An encoded summary: schema/layout.md.
    layouts @19 :Void;
  }
  layout @17 :UInt64;
  # For read, write, scan and mayCollect: the digest of the layout that the sender uses. A
  # receiver that does not use that layout refuses. For a write with handOff it is not checked.
}

struct Write {
  key @0 :Data;
  object @1 :Data;
  # An encoded object: schema/object.md.
  hintFor @2 :UInt64;
  # If not 0: the id of a replica that cannot be reached. The receiver keeps the object as a hint
  # for that replica.
  handOff @3 :Bool;
  # True if the receiver acks only once the object is durable. The sender may then forget it.
  validUntilMs @4 :UInt64;
  # The time after which the receiver refuses the write, in milliseconds since 1970.
}

struct Tree {
  partition @0 :UInt16;
  n @1 :UInt8;
}

struct TreeRoot {
  partition @0 :UInt16;
  n @1 :UInt8;
  root @2 :UInt64;
}

struct TreeState {
  likeness @0 :Likeness;
  recovering @1 :Bool;

  enum Likeness {
    same @0;
    differs @1;
    unknown @2;
  }
}

struct DigestsOf {
  partition @0 :UInt16;
  n @1 :UInt8;
  leaves @2 :UInt64;
  # One bit for each leaf: bit i is set if the sender wants leaf number i.
  after @3 :Data;
}

struct Entry {
  key @0 :Data;
  digest @1 :UInt64;
}

struct DigestPage {
  entries @0 :List(Entry);
  next @1 :Data;
}

struct CollectTombstones {
  entries @0 :List(Entry);
  validUntilMs @1 :UInt64;
}

struct Scan {
  partition @0 :UInt16;
  prefix @1 :Data;
  after @2 :Data;
  limit @3 :UInt32;
  maxBytes @4 :UInt32;
}

struct Result {
  id @0 :UInt64;
  union {
    pong @1 :Void;
    absent @2 :Void;
    object @3 :Data;
    acked @4 :Void;
    page @5 :Page;
    forwarded @6 :Client.Result;
    failure @7 :Failure;
    trees @8 :List(TreeState);
    leaves @9 :List(UInt64);
    digests @10 :DigestPage;
    durableDigests @11 :List(UInt64);
    # One digest for each key; 0 if the object is absent.
    mayCollect @12 :List(Bool);
    clock @13 :UInt64;
    layoutSummary @14 :Data;
    layouts @15 :Data;
  }
}

struct Page {
  records @0 :List(Record);
  more @1 :Bool;

  struct Record {
    key @0 :Data;
    object @1 :Data;
  }
}

struct Failure {
  kind @0 :Kind;
  detail @1 :Text;
  limit @2 :UInt64;

  enum Kind {
    disconnected @0;
    expired @1;
    overloaded @2;
    storage @3;
    refused @4;
    recovering @5;
    staleLayout @6;
  }
}
