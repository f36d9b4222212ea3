//! Changes of a cluster's layout. An operator stages them one by one, then plans and commits them
//! together.
//!
//! Source: the terms are Riak's.

use std::collections::BTreeMap;

use crate::bucket::{BucketDefinition, DEFAULT_BUCKET, check};
use crate::layout_error::LayoutError;
use crate::member::{DEFAULT_WEIGHT, Departure, MAX_MEMBER_TEXT, Member, WEIGHTS};
use crate::varint::{Reader, put_bytes, put_u64, put_varint};

/// One change of the layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LayoutChange {
    /// A node becomes a member.
    Join {
        /// The node's name.
        name: String,
        /// The address at which the node listens, "host:port".
        address: String,
        /// The node's failure zone, or empty.
        zone: String,
        /// Share of the partitions that the node holds, relative to the other members' weights.
        weight: u16,
    },
    /// A member hands over its data and stops being a member.
    Leave {
        /// The member's name.
        name: String,
    },
    /// A member whose disk is lost stops being a member. No node waits for it.
    Remove {
        /// The member's name.
        name: String,
    },
    /// A member gets another weight.
    Weight {
        /// The member's name.
        name: String,
        /// Share of the partitions that the member holds, relative to the other members' weights.
        weight: u16,
    },
    /// A member moves to another failure zone.
    Zone {
        /// The member's name.
        name: String,
        /// The new zone, or empty.
        zone: String,
    },
    /// Partitions get another number of replicas.
    Replicas {
        /// N, the number of replicas of each partition.
        count: u8,
    },
    /// A bucket gets a definition of its own. The definition can never be changed.
    Bucket {
        /// The bucket's name.
        name: String,
        /// The bucket's n, quorums, conflict resolver and limits.
        definition: BucketDefinition,
    },
}

/// A change that waits for its commit. It has a number of its own, which the caller repeats in
/// every attempt, also at another node. So the change is made only once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StagedChange {
    /// The number that names the change on all nodes, and orders it among other changes: see
    /// [`change_id`].
    pub id: u64,
    /// The change itself.
    pub change: LayoutChange,
}

/// Returns the number of a new change. The numbers of one caller increase. The numbers of different
/// callers are in time order, as far as their clocks agree.
///
/// `wall_ms`: the wall clock, in milliseconds since 1970. `random`: a random number, of which the
/// low 16 bits are used. `last`: the previous number of the same caller, or 0.
pub fn change_id(wall_ms: u64, random: u64, last: u64) -> u64 {
    // The shift keeps 48 bits of milliseconds, which last for 8,900 years.
    ((wall_ms << 16) | (random & 0xffff)).max(last.saturating_add(1))
}

impl std::fmt::Display for LayoutChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LayoutChange::Join { name, address, zone, weight } => {
                write!(f, "join {name} at {address}")?;
                if !zone.is_empty() {
                    write!(f, " in zone {zone}")?;
                }
                if *weight != DEFAULT_WEIGHT { write!(f, " with weight {weight}") } else { Ok(()) }
            }
            LayoutChange::Leave { name } => write!(f, "leave {name}"),
            LayoutChange::Remove { name } => write!(f, "remove {name} (its disk is lost)"),
            LayoutChange::Weight { name, weight } => write!(f, "weight of {name} = {weight}"),
            LayoutChange::Zone { name, zone } => write!(f, "zone of {name} = {zone:?}"),
            LayoutChange::Replicas { count } => write!(f, "replicas = {count}"),
            LayoutChange::Bucket { name, definition } => {
                write!(f, "bucket {name}, resolver {}", definition.resolver)?;
                definition.n.map_or(Ok(()), |n| write!(f, ", n = {n}"))
            }
        }
    }
}

impl LayoutChange {
    fn parts(&self) -> (u8, [&str; 3], u64) {
        match self {
            LayoutChange::Join { name, address, zone, weight } => {
                (0, [name, address, zone], u64::from(*weight))
            }
            LayoutChange::Leave { name } => (1, [name, "", ""], 0),
            LayoutChange::Remove { name } => (2, [name, "", ""], 0),
            LayoutChange::Weight { name, weight } => (3, [name, "", ""], u64::from(*weight)),
            LayoutChange::Zone { name, zone } => (4, [name, "", zone], 0),
            LayoutChange::Replicas { count } => (5, ["", "", ""], u64::from(*count)),
            LayoutChange::Bucket { name, .. } => (6, [name, "", ""], 0),
        }
    }

    /// Encodes the change for a request.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        let (kind, texts, number) = self.parts();
        out.push(kind);
        texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
        put_varint(out, number);
        if let LayoutChange::Bucket { definition, .. } = self {
            definition.encode(out);
        }
    }

    /// Decodes a change that `encode` wrote.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<LayoutChange, LayoutError> {
        let mut reader = Reader::new(bytes);
        let change = LayoutChange::read(&mut reader)?;
        if reader.remaining() == 0 { Ok(change) } else { Err(LayoutError::Malformed) }
    }

    fn read(reader: &mut Reader<'_>) -> Result<LayoutChange, LayoutError> {
        let kind = reader.byte()?;
        let (name, address, zone) =
            (reader.text()?.to_owned(), reader.text()?.to_owned(), reader.text()?.to_owned());
        let number = reader.varint()?;
        let weight = u16::try_from(number).map_err(|_| LayoutError::Malformed);
        Ok(match kind {
            0 => LayoutChange::Join { name, address, zone, weight: weight? },
            1 => LayoutChange::Leave { name },
            2 => LayoutChange::Remove { name },
            3 => LayoutChange::Weight { name, weight: weight? },
            4 => LayoutChange::Zone { name, zone },
            5 => LayoutChange::Replicas { count: u8::try_from(number).map_err(|_| LayoutError::Malformed)? },
            6 => LayoutChange::Bucket { name, definition: BucketDefinition::decode(reader)? },
            _ => return Err(LayoutError::Malformed),
        })
    }
}

impl StagedChange {
    /// Encodes the number and the change for a request.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        put_u64(out, self.id);
        self.change.write(out);
    }

    /// Decodes a change that `encode` wrote.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<StagedChange, LayoutError> {
        let mut reader = Reader::new(bytes);
        let staged = StagedChange::read(&mut reader)?;
        if reader.remaining() == 0 { Ok(staged) } else { Err(LayoutError::Malformed) }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<StagedChange, LayoutError> {
        let id = reader.u64().map_err(|_| LayoutError::Malformed)?;
        Ok(StagedChange { id, change: LayoutChange::read(reader)? })
    }
}

/// The members, N and buckets of a layout, without its assignment of partitions. Changes are
/// applied to it.
pub(crate) struct Outline {
    /// The number of the layout that this outline becomes.
    pub(crate) number: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) replicas: u8,
    pub(crate) gone: BTreeMap<String, Departure>,
    pub(crate) buckets: BTreeMap<String, BucketDefinition>,
}

impl Outline {
    /// Applies one change.
    ///
    /// # Errors
    /// [`LayoutError`] if the change is not possible, for example for a node that is no member.
    pub(crate) fn apply(&mut self, change: &LayoutChange) -> Result<(), LayoutError> {
        let refused = |detail: String| Err(LayoutError::Change { detail });
        match change {
            LayoutChange::Join { name, address, zone, weight } => {
                if self.members.iter().any(|member| member.name == *name) {
                    return refused(format!("{name:?} is a member already"));
                }
                for (what, text) in [("name", name), ("address", address), ("zone", zone)] {
                    if text.len() > MAX_MEMBER_TEXT || (what != "zone" && text.is_empty()) {
                        return refused(format!("{what} {text:?}: use 1 to {MAX_MEMBER_TEXT} bytes"));
                    }
                }
                check_weight(name, *weight)?;
                match self.gone.get(name) {
                    Some(Departure::Lost { by: lost_by }) | Some(Departure::Returned { lost_by }) => {
                        let lost_by = *lost_by;
                        self.gone.insert(name.clone(), Departure::Returned { lost_by });
                    }
                    Some(Departure::Left) => drop(self.gone.remove(name)),
                    None => {}
                }
                self.members.push(Member { weight: *weight, ..Member::new(name, address, zone) });
            }
            LayoutChange::Leave { name } | LayoutChange::Remove { name } => {
                let lost = matches!(change, LayoutChange::Remove { .. });
                if lost && matches!(self.gone.get(name), Some(Departure::Lost { .. })) {
                    return refused(format!("{name:?} was declared lost already"));
                }
                let before = self.members.len();
                self.members.retain(|member| member.name != *name);
                // A node that left may still be handing over its data, so its disk can still be
                // declared lost.
                let leaving = lost && self.gone.contains_key(name);
                if self.members.len() == before && !leaving {
                    return refused(self.unknown(name));
                }
                let how = match (lost, self.gone.get(name)) {
                    (true, _) => Departure::Lost { by: self.number },
                    // If the node's disk was lost before, that is still recorded when the node
                    // leaves.
                    (false, Some(returned @ Departure::Returned { .. })) => *returned,
                    (false, _) => Departure::Left,
                };
                self.gone.insert(name.clone(), how);
            }
            LayoutChange::Weight { name, weight } => {
                check_weight(name, *weight)?;
                self.find(name)?.weight = *weight;
            }
            LayoutChange::Zone { name, zone } => {
                if zone.len() > MAX_MEMBER_TEXT {
                    return refused(format!("zone {zone:?}: use up to {MAX_MEMBER_TEXT} bytes"));
                }
                self.find(name)?.zone = zone.clone();
            }
            LayoutChange::Replicas { count } => self.replicas = *count,
            LayoutChange::Bucket { name, definition } => match self.buckets.get(name) {
                _ if name == DEFAULT_BUCKET => {
                    return refused(format!(
                        "bucket {name:?} cannot be created: its definition is the default for all buckets without one of \
                         their own, and can only be set in [buckets.{name}] of the configuration before the cluster begins"
                    ));
                }
                // Another node may have created the same bucket at the same time.
                Some(there) if there == definition => {}
                Some(there) => {
                    return refused(format!(
                        "bucket {name:?} exists with another definition ({}): a definition cannot be changed, use another name",
                        there.differences(definition)
                    ));
                }
                None => {
                    check(name, definition, self.replicas)?;
                    self.buckets.insert(name.clone(), definition.clone());
                }
            },
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> String {
        let mut names: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        format!("no member is called {name:?}; the members are {}", names.join(", "))
    }

    fn find(&mut self, name: &str) -> Result<&mut Member, LayoutError> {
        let detail = self.unknown(name);
        let found = self.members.iter_mut().find(|member| member.name == name);
        found.ok_or(LayoutError::Change { detail })
    }
}

fn check_weight(name: &str, weight: u16) -> Result<(), LayoutError> {
    if WEIGHTS.contains(&weight) {
        return Ok(());
    }
    Err(LayoutError::Weight { name: name.to_owned(), weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoded change equals the encoded one. Truncated bytes are refused.
    #[test]
    fn changes_round_trip() {
        let (name, zone) = ("n1".to_owned(), "z".to_owned());
        let join =
            LayoutChange::Join { name: name.clone(), address: "h:1".into(), zone: zone.clone(), weight: 7 };
        let changes = [
            join,
            LayoutChange::Leave { name: name.clone() },
            LayoutChange::Remove { name: name.clone() },
            LayoutChange::Weight { name: name.clone(), weight: 300 },
            LayoutChange::Zone { name, zone },
            LayoutChange::Replicas { count: 5 },
            LayoutChange::Bucket {
                name: "carts".into(),
                definition: BucketDefinition { n: Some(2), ..BucketDefinition::default() },
            },
        ];
        for change in changes {
            let bytes = change.encode();
            assert_eq!(LayoutChange::decode(&bytes), Ok(change));
            for end in 0..bytes.len() {
                assert!(LayoutChange::decode(&bytes[..end]).is_err());
            }
        }
    }
}
