//! The preamble of a connection: introductions that both sides exchange before Cap'n Proto begins.
//! An introduction has the role, identity and protocol versions of its sender. Each side then
//! admits or refuses the other.
//!
//! An introduction is bounded, has a deadline of its own, and is read before any library sees a
//! byte. A program that speaks another protocol is refused cheaply. `schema/preamble.md` describes
//! the bytes.

use std::io;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::admission::{Identity, Introduction, NEWEST_PROTOCOL, OLDEST_PROTOCOL, Role, admit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::network::Duplex;

const MAGIC: &[u8; 8] = b"QUORATE\x01";
const MAX_BODY_BYTES: usize = 1024;
const CLIENT: u8 = 0;
const NODE: u8 = 1;
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;

/// Longest time for which either side waits for the other's introduction.
pub const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reason why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// The stream failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side did not introduce itself in time.
    #[error("no answer within {} s", PREAMBLE_TIMEOUT.as_secs())]
    Timeout,
    /// The other side speaks another protocol.
    #[error("the other side does not speak Quorate's protocol (it sent {sent:?}); is this the right port?")]
    Stranger {
        /// First bytes that the other side sent, escaped as ASCII.
        sent: String,
    },
    /// One side refused the other, for this reason.
    #[error("{0}")]
    Refused(String),
}

/// Introduces this side on a connection that it opened. Returns the identity of the node that
/// answered. `ours` is `None` for a client.
///
/// # Errors
/// [`PreambleError`]; `Refused` if either side refuses the other.
pub async fn introduce(duplex: &mut Duplex, ours: Option<&Identity>) -> Result<Identity, PreambleError> {
    let exchange = async {
        let role = ours.map_or(Role::Client, |identity| Role::Node(identity.clone()));
        let body = encode(&Introduction { oldest: OLDEST_PROTOCOL, newest: NEWEST_PROTOCOL, role });
        write_frame(duplex, None, &body).await?;
        read_magic(duplex).await?;
        let status = duplex.read.read_u8().await?;
        let body = read_body(duplex).await?;
        if status == REFUSED {
            return Err(PreambleError::Refused(String::from_utf8_lossy(&body).into_owned()));
        }
        let theirs = decode(&body)?;
        if let Some(ours) = ours {
            admit(ours, &theirs).map_err(PreambleError::Refused)?;
        }
        match theirs.role {
            Role::Node(identity) => Ok(identity),
            Role::Client => Err(malformed()),
        }
    };
    tokio::time::timeout(PREAMBLE_TIMEOUT, exchange).await.unwrap_or(Err(PreambleError::Timeout))
}

/// Reads the introduction of the side that opened a connection, and admits or refuses that side.
/// Returns the role of an admitted side.
///
/// # Errors
/// [`PreambleError`]. With `Refused`, the reason has also been sent to the other side.
pub async fn welcome(duplex: &mut Duplex, ours: &Identity) -> Result<Role, PreambleError> {
    let exchange = async {
        read_magic(duplex).await?;
        let theirs = decode(&read_body(duplex).await?)?;
        match admit(ours, &theirs) {
            Ok(_) => {
                let role = Role::Node(ours.clone());
                let body = encode(&Introduction { oldest: OLDEST_PROTOCOL, newest: NEWEST_PROTOCOL, role });
                write_frame(duplex, Some(WELCOME), &body).await?;
                Ok(theirs.role)
            }
            Err(reason) => {
                write_frame(duplex, Some(REFUSED), reason.as_bytes()).await?;
                Err(PreambleError::Refused(reason))
            }
        }
    };
    tokio::time::timeout(PREAMBLE_TIMEOUT, exchange).await.unwrap_or(Err(PreambleError::Timeout))
}

async fn write_frame(duplex: &mut Duplex, status: Option<u8>, body: &[u8]) -> io::Result<()> {
    let body = &body[..body.len().min(MAX_BODY_BYTES)];
    let mut frame = MAGIC.to_vec();
    frame.extend(status);
    frame.extend_from_slice(&(body.len() as u16).to_le_bytes());
    frame.extend_from_slice(body);
    duplex.write.write_all(&frame).await?;
    duplex.write.flush().await
}

async fn read_magic(duplex: &mut Duplex) -> Result<(), PreambleError> {
    let mut magic = [0; 8];
    let mut have = 0;
    // A program that speaks another protocol may send fewer than eight bytes and then wait. The
    // first wrong byte is enough to refuse it.
    while have < magic.len() {
        let count = duplex.read.read(&mut magic[have..]).await?;
        if count == 0 {
            return Err(
                io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed the connection").into()
            );
        }
        have += count;
        if magic[..have] != MAGIC[..have] {
            return Err(PreambleError::Stranger { sent: magic[..have].escape_ascii().to_string() });
        }
    }
    Ok(())
}

async fn read_body(duplex: &mut Duplex) -> Result<Vec<u8>, PreambleError> {
    let length = duplex.read.read_u16_le().await? as usize;
    if length > MAX_BODY_BYTES {
        return Err(malformed());
    }
    let mut body = vec![0; length];
    duplex.read.read_exact(&mut body).await?;
    Ok(body)
}

fn malformed() -> PreambleError {
    PreambleError::Stranger { sent: "a malformed introduction".into() }
}

fn encode(introduction: &Introduction) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&introduction.oldest.to_le_bytes());
    out.extend_from_slice(&introduction.newest.to_le_bytes());
    match &introduction.role {
        Role::Client => out.push(CLIENT),
        Role::Node(identity) => {
            out.push(NODE);
            for number in [identity.node.0, identity.layout_digest] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            for text in [&identity.cluster, &identity.name] {
                let text = &text.as_bytes()[..text.len().min(255)];
                out.push(text.len() as u8);
                out.extend_from_slice(text);
            }
        }
    }
    out
}

fn decode(bytes: &[u8]) -> Result<Introduction, PreambleError> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], PreambleError> {
        let (taken, rest) = bytes.split_at_checked(count).ok_or_else(malformed)?;
        *bytes = rest;
        Ok(taken)
    }
    fn number(bytes: &mut &[u8], width: usize) -> Result<u64, PreambleError> {
        let mut fixed = [0; 8];
        fixed[..width].copy_from_slice(take(bytes, width)?);
        Ok(u64::from_le_bytes(fixed))
    }
    fn text(bytes: &mut &[u8]) -> Result<String, PreambleError> {
        let length = number(bytes, 1)? as usize;
        String::from_utf8(take(bytes, length)?.to_vec()).map_err(|_| malformed())
    }
    let mut rest = bytes;
    let oldest = number(&mut rest, 2)? as u16;
    let newest = number(&mut rest, 2)? as u16;
    let role = match number(&mut rest, 1)? as u8 {
        CLIENT => Role::Client,
        NODE => Role::Node(Identity {
            node: NodeId(number(&mut rest, 8)?),
            layout_digest: number(&mut rest, 8)?,
            cluster: text(&mut rest)?,
            name: text(&mut rest)?,
        }),
        _ => return Err(malformed()),
    };
    // A newer protocol version may append fields, which this version ignores.
    Ok(Introduction { oldest, newest, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoded introduction decodes to itself, and each truncation of it is refused.
    #[test]
    fn introductions_round_trip_and_truncations_are_refused() {
        let identity =
            Identity { cluster: "demo".into(), node: NodeId(7), name: "n1".into(), layout_digest: 3 };
        let introduction = Introduction { oldest: 1, newest: 2, role: Role::Node(identity) };
        let bytes = encode(&introduction);
        assert_eq!(decode(&bytes).unwrap(), introduction);
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err());
        }
    }
}
