@0xf7967d3eb8d7ac52;
# The protocol between clients and nodes, after the preamble of the connection (schema/preamble.md).
#
# All operations are batched. A call carries the operations that gathered at the sender while
# earlier calls were under way. The call is answered as soon as any operation of the connection has
# a result. The answer has the results that are ready, also those of operations from other calls.
# So no batch waits for its slowest operation. A call without operations only collects results.
# A call that waits for too long is answered without results, as a sign of life.

interface Node {
  exchange @0 (operations :List(Operation)) -> (results :List(Result));
}

struct Operation {
  id @0 :UInt64;
  # A number that the sender chooses, unique on the connection.
  timeoutMs @1 :UInt32;
  # The time until the operation's deadline, in milliseconds.
  bucket @2 :Text;
  key @3 :Data;
  quorum @4 :Int16;
  # R of a read, W of a write. 1 to 255: this number of replicas. 0: as the bucket's definition
  # says. -1: more than half of the replicas. -2: all replicas.

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
    # The names of the peers from which this node is cut off. With ">" before a name, only bytes to
    # that peer are lost. The node refuses the operation unless its configuration enables faults.
    repair @14 :Bool;
    # True if the node begins a round of anti-entropy with every peer now.
    cluster @15 :Cluster;
  }
}

struct Cluster {
  verb @0 :Verb;
  change @1 :Data;
  # For stage and apply: an id and a change (schema/layout.md). For createBucket: a change. For
  # commit: the digest of the layout that a plan showed (8 bytes, big-endian), or nothing.

  enum Verb {
    show @0;
    stage @1;
    plan @2;
    commit @3;
    clear @4;
    drain @5;
    createBucket @6;
    # The reply is sent once every node uses the definition, or when the deadline passes.
    buckets @7;
    apply @8;
    # Makes the change the newest layout at once, without the staged changes.
  }
}

struct Put {
  value @0 :Data;
  tombstone @1 :Bool;
  # True for a delete, whose value is empty.
  context @2 :Data;
  # The context that the client last saw of the key, or nothing.
  mode @3 :WriteMode;
  requestId @4 :UInt64;
  attempt @5 :UInt16;
  # The number of the attempt at this write, from 0. An attempt with a number above 0 first checks
  # that no earlier attempt was applied.
  sloppy @6 :Choice;

  enum WriteMode {
    overwrite @0;
    # The write replaces all versions that the coordinator holds, and those in the context.
    exactly @1;
    # The write replaces exactly the versions in the context.
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
    # A JSON document: the reply to explain, status, repair and cluster.
    layout @6 :Data;
    # An encoded layout: schema/layout.md.
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
  # An encoded context: schema/object.md.
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
  # The start of the next page; empty after the last page.

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
  # The fingerprint covers only keys of buckets with this number of replicas.
}

struct Failure {
  # One of the errors of docs/errors.md. Fields that an error does not have are zero.
  kind @0 :Kind;
  needed @1 :UInt8;
  received @2 :UInt8;
  number @3 :UInt64;
  # For tooManySiblings: the number of siblings. For deadlineExceeded: milliseconds from the request
  # to the error.
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
