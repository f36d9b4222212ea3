//! The messages between members, as JSON, which is readable in a dump of the traffic. They are only
//! a few hundred bytes a second, so their size does not matter.

use std::collections::BTreeMap;

use quorate_core::member::Member;
use serde::{Deserialize, Serialize};

/// Largest number of entries of a member's metadata.
pub(crate) const MAX_METADATA: usize = 32;
/// Largest number of bytes of one metadata value.
pub(crate) const MAX_METADATA_BYTES: usize = 1_024;
/// Largest number of bytes of a member's name, address, zone, or metadata key.
const MAX_TEXT_BYTES: usize = 256;

/// One member's name, address, zone and metadata, as the member itself published them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    #[serde(with = "WireMember")]
    pub(crate) member: Member,
    /// Number of the member's run. It begins at 1. When the member receives a card of itself that
    /// is newer than its own, or that differs in the same incarnation, it takes that card's
    /// incarnation + 1. Mostly such a card is from an earlier run.
    pub(crate) incarnation: u64,
    /// Number of changes of the card in this run.
    pub(crate) version: u64,
    /// True if the member was removed from the cluster.
    pub(crate) left: bool,
    #[serde(rename = "facts")]
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
}

/// State of a node's knowledge of one member. Newer knowledge compares as greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Age {
    pub(crate) incarnation: u64,
    pub(crate) version: u64,
    pub(crate) heartbeat: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// The sender's own card and heartbeat. Also, for each node id that it knows, the age of its
    /// knowledge of that member.
    Digest { own: (Card, u64), ages: Vec<(u64, Age)> },
    /// Cards with heartbeats, and the ids of members whose cards the sender wants.
    News { cards: Vec<(Card, u64)>, wanted: Vec<u64> },
}

/// A member's form in messages. It has no id, because the id follows from the name.
struct WireMember;

#[derive(Serialize, Deserialize)]
struct Names<'a> {
    name: std::borrow::Cow<'a, str>,
    address: std::borrow::Cow<'a, str>,
    zone: std::borrow::Cow<'a, str>,
}

impl WireMember {
    fn serialize<S: serde::Serializer>(member: &Member, serializer: S) -> Result<S::Ok, S::Error> {
        let Member { name, address, zone, .. } = member;
        let (name, address, zone) = (name.into(), address.into(), zone.into());
        Names { name, address, zone }.serialize(serializer)
    }

    fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Member, D::Error> {
        let names = Names::deserialize(deserializer)?;
        Ok(Member::new(&names.name, &names.address, &names.zone))
    }
}

impl Card {
    pub(crate) fn of(member: Member) -> Card {
        Card { member, incarnation: 1, version: 0, left: false, metadata: BTreeMap::new() }
    }

    /// Returns true if the card's texts, metadata and numbers are within their limits.
    pub(crate) fn is_sound(&self) -> bool {
        let Member { name, address, zone, .. } = &self.member;
        let short = [name, address, zone].iter().all(|text| text.len() <= MAX_TEXT_BYTES);
        let metadata = self.metadata.len() <= MAX_METADATA;
        let numbers = self.incarnation < u64::MAX / 2 && self.version < u64::MAX / 2;
        !name.is_empty()
            && short
            && metadata
            && numbers
            && self
                .metadata
                .iter()
                .all(|(name, value)| name.len() <= MAX_TEXT_BYTES && value.len() <= MAX_METADATA_BYTES)
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        serde_json::from_slice(bytes).ok()
    }
}
