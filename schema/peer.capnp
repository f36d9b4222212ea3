@0xc82c1f8dce4c551d;
# What nodes say to each other. Batched as in client.capnp.

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
    # A client's request, from a node that is no replica of its key.
  }
}

struct Write {
  key @0 :Data;
  object @1 :Data;
  # schema/object.md
  hintFor @2 :UInt64;
  # Not 0: keep the object as a hint for this node.
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
  }
}
