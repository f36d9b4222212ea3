//! The exit codes of the command.

use std::process::ExitCode;

use quorate_client::ClientError;
use quorate_core::RequestError;

use crate::config::ConfigError;

/// Error of a command.
pub(crate) enum Failure {
    Absent,
    Usage(String),
    Client(ClientError),
    /// Descriptions of reads that were wrong or missing.
    Verification(Vec<String>),
}

/// Help text that lists the exit codes.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the key is absent; 2 invalid arguments, configuration or request; 3 too few nodes, or no node, \
can be reached; 4 indeterminate (the write may take effect later); 5 deadline exceeded; 6 overloaded; 7 storage failed; \
8 too many siblings; 9 a read returned a wrong value or none (bench --verify).";

impl Failure {
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(message.into())
    }

    /// Prints the error to stderr, and returns its exit code.
    pub(super) fn report(self) -> ExitCode {
        let (code, message) = match self {
            Failure::Absent => return ExitCode::from(1),
            Failure::Usage(message) => (2, message),
            Failure::Verification(wrong) => (9, format!("wrong or missing reads: {}", wrong.join("; "))),
            Failure::Client(error) => {
                let code = match &error {
                    ClientError::Unreachable { .. }
                    | ClientError::Request(RequestError::Unavailable { .. }) => 3,
                    ClientError::Request(RequestError::InvalidRequest { .. }) => 2,
                    ClientError::Request(RequestError::Indeterminate { .. }) => 4,
                    ClientError::Request(RequestError::DeadlineExceeded { .. }) => 5,
                    ClientError::Request(RequestError::Overloaded { .. }) => 6,
                    ClientError::Request(RequestError::StorageFailed { .. }) => 7,
                    ClientError::Request(RequestError::TooManySiblings { .. }) => 8,
                };
                (code, error.to_string())
            }
        };
        eprintln!("quorate: {message}");
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        Failure::Client(error.into())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Usage(error.to_string())
    }
}
