//! Conversions between the structs of the Cap'n Proto schema and the types of `quorate-core`.
//! Nothing is decided here. The schema allows some values that the types of `quorate-core` do not
//! allow. The sender of such a value receives an error.

pub(crate) mod client;
pub(crate) mod peer;

use std::time::Duration;

use capnp::Error;

/// Converts the time left until a deadline to milliseconds, rounded up, at least 1.
fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

fn text(reader: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, Error> {
    reader?.to_string().map_err(|error| Error::failed(error.to_string()))
}

fn unknown(_: capnp::NotInSchema) -> Error {
    Error::failed("the other side sent an operation or a result that this version does not know".into())
}
