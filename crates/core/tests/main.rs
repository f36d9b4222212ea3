//! Core's tests through its public face: one binary.

mod broken_plugins;
mod codec;
mod histories;
mod layout;
