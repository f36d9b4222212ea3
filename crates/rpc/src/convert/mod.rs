//! Between the wire's structs and core's types. Nothing is decided here; what the wire can say and core cannot is an
//! error for its sender.

pub(crate) mod client;
pub(crate) mod peer;

use std::time::Duration;

use capnp::Error;

/// What is left of a deadline, as the wire carries it: whole milliseconds, never none while there is some.
fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

fn text(reader: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, Error> {
    reader?.to_string().map_err(|error| Error::failed(error.to_string()))
}

fn unknown(_: capnp::NotInSchema) -> Error {
    Error::failed("an operation or result of a newer protocol version".into())
}
