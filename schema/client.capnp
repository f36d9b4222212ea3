@0xf7967d3eb8d7ac52;
# What clients and nodes say to each other, once a connection's preamble (schema/preamble.md) has been answered.
#
# Everything is batched. A call carries the operations that gathered on the sender while earlier calls were under way,
# and is answered as soon as any operation of this connection has a result: with all results that are ready, whichever
# call brought their operations. A call without operations collects more. So no batch waits for its slowest operation.

interface Node {
  exchange @0 (operations :List(Operation)) -> (results :List(Result));
}

struct Operation {
  id @0 :UInt64;
  # Chosen by the sender, unique on the connection.
  timeoutMs @1 :UInt32;
  # What is left of the operation's deadline.
  bucket @2 :Text;
  key @3 :Data;
  quorum @4 :Int16;
  # r or w: 0 the bucket's, -1 more than half, -2 all.

  union {
    ping @5 :Void;
    get @6 :Void;
    put @7 :Put;
    scan @8 :Scan;
    explain @9 :Void;
    status @10 :Void;
    layout @11 :Void;
    fingerprint @12 :Void;
    faults @13 :List(Text);
    # Names of the nodes to be cut off from, both ways or (">name") in what this one sends. Refused unless the node's configuration turns faults on.
    repair @14 :Bool;
    # True: begin a round with every peer.
    cluster @15 :Cluster;
  }
}

struct Cluster {
  verb @0 :Verb;
  change @1 :Data;
  # With stage, apply and createBucket: schema/layout.md. With commit: the digest that a plan showed, 8 bytes, big-endian, or nothing.

  enum Verb {
    show @0;
    stage @1;
    plan @2;
    commit @3;
    clear @4;
    drain @5;
    createBucket @6;
    # Answered once every node goes by it, or when the request's time is up.
    buckets @7;
    apply @8;
    # Stage this change and commit it alone, whatever else is staged.
  }
}

struct Put {
  value @0 :Data;
  tombstone @1 :Bool;
  # A delete: value is empty.
  context @2 :Data;
  # What the client has seen of the key, or nothing.
  mode @3 :WriteMode;
  requestId @4 :UInt64;
  attempt @5 :UInt16;
  # 0 for the first one; later ones ask whether the write was applied before.
  sloppy @6 :Choice;

  enum WriteMode {
    overwrite @0;
    # Overwrite: what the coordinator holds, and what the context contains.
    exactly @1;
    # What the context contains, no more.
  }
  enum Choice {
    bucket @0;
    yes @1;
    no @2;
  }
}

struct Scan {
  prefix @0 :Data;
  cursor @1 :Data;
  limit @2 :UInt32;
  keysOnly @3 :Bool;
}

struct Result {
  id @0 :UInt64;
  union {
    pong @1 :Void;
    got @2 :Got;
    written @3 :Written;
    page @4 :Page;
    report @5 :Text;
    # A JSON document: explain, status and repair.
    layout @6 :Data;
    # schema/layout.md
    fingerprint @7 :List(Fingerprint);
    done @8 :Void;
    failure @9 :Failure;
  }
}

struct Sibling {
  stamp @0 :UInt64;
  value @1 :Data;
}

struct Receipt {
  coordinator @0 :UInt64;
  layout @1 :UInt64;
  acked @2 :List(UInt64);
  fallbacks @3 :List(UInt64);
  repaired @4 :List(UInt64);
  micros @5 :UInt32;
}

struct Got {
  siblings @0 :List(Sibling);
  context @1 :Data;
  # schema/object.md
  receipt @2 :Receipt;
}

struct Written {
  context @0 :Data;
  conflict @1 :Bool;
  hinted @2 :UInt8;
  receipt @3 :Receipt;
}

struct Page {
  entries @0 :List(Entry);
  cursor @1 :Data;
  # Where the next page begins; empty at the end.

  struct Entry {
    key @0 :Data;
    siblings @1 :List(Sibling);
    context @2 :Data;
    partition @3 :UInt16;
  }
}

struct Fingerprint {
  partition @0 :UInt16;
  records @1 :UInt64;
  digest @2 :UInt64;
  replicas @3 :UInt8;
  # Of keys of buckets with this many replicas.
}

struct Failure {
  # One of the errors of docs/errors.md; fields that an error does not have are zero.
  kind @0 :Kind;
  needed @1 :UInt8;
  received @2 :UInt8;
  number @3 :UInt64;
  # A limit, a count of siblings or milliseconds.
  limit @4 :UInt64;
  detail @5 :Text;

  enum Kind {
    unavailable @0;
    indeterminate @1;
    overloaded @2;
    deadlineExceeded @3;
    tooManySiblings @4;
    storageFailed @5;
    invalidRequest @6;
  }
}
