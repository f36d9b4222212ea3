//! Tests of the crate through its public interface, in one binary.

mod broken_plugins;
mod codec;
mod histories;
mod layout;
