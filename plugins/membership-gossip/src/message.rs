//! What members say to each other, as JSON: a few hundred bytes a second, and readable in a dump.

use std::collections::BTreeMap;

use quorate_core::member::Member;
use serde::{Deserialize, Serialize};

/// Most entries of a member's metadata, and most bytes of one.
pub(crate) const MAX_METADATA: usize = 32;
pub(crate) const MAX_METADATA_BYTES: usize = 1_024;
/// Longest name, address and zone of a member.
const MAX_TEXT_BYTES: usize = 256;

/// What is known of a member, as it said it itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    #[serde(with = "WireMember")]
    pub(crate) member: Member,
    /// Counts the member's runs: raised when it hears of an earlier one.
    pub(crate) incarnation: u64,
    /// Counts the changes of this run.
    pub(crate) version: u64,
    pub(crate) left: bool,
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
}

/// How new a piece of knowledge is: the larger, the newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Age {
    pub(crate) incarnation: u64,
    pub(crate) version: u64,
    pub(crate) heartbeat: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// Who the sender is, and of every member how new its knowledge is.
    Digest { own: (Card, u64), ages: Vec<(u64, Age)> },
    /// Cards with heartbeats, and of whom the sender wants to hear.
    News { cards: Vec<(Card, u64)>, wanted: Vec<u64> },
}

/// A member by name: its id follows from that.
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

    /// Within the bounds that every card keeps.
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
