//! Layouts: the members of a cluster and the replicas of each partition. A layout is immutable,
//! numbered, and identified by a hash of its content.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::assignment::{assign, rendezvous_order};
use crate::bucket::{BucketDefinition, Buckets};
use crate::change::{Outline, StagedChange};
use crate::key::PartitionId;
use crate::layout_error::LayoutError;
use crate::member::{Departure, MAX_MEMBERS, Member, NodeId, WEIGHTS};
use crate::varint::{Reader, put_bytes, put_u64, put_varint};

/// Allowed numbers of partitions (Q). Q must also be a power of two.
pub const PARTITIONS: std::ops::RangeInclusive<u32> = 1..=16_384;

/// The members of a cluster and, for each partition, its N replicas in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    number: u64,
    parent: u64,
    replicas: u8,
    /// Sorted by id.
    members: Vec<Member>,
    /// N node ids per partition, in order of preference.
    assignment: Vec<NodeId>,
    /// The way in which nodes left the cluster, by name. A declared loss of the disk is kept when
    /// the node joins again.
    gone: BTreeMap<String, Departure>,
    /// The changes that made this layout from its parent.
    changes: Vec<StagedChange>,
    /// The definitions of buckets.
    buckets: Arc<Buckets>,
    digest: u64,
}

impl Layout {
    /// Makes the first layout of a cluster.
    ///
    /// # Errors
    /// [`LayoutError`], with the value that is not allowed.
    pub fn first(members: Vec<Member>, partitions: u32, replicas: u8) -> Result<Layout, LayoutError> {
        let none = Layout {
            number: 0,
            parent: 0,
            replicas,
            members: Vec::new(),
            assignment: Vec::new(),
            gone: BTreeMap::new(),
            changes: Vec::new(),
            buckets: Arc::default(),
            digest: 0,
        };
        none.compute(members, partitions, replicas, &|_| Vec::new())
    }

    /// Returns this layout with these bucket definitions. Outside of this file, call it only on a
    /// first layout: later layouts get their buckets by changes.
    ///
    /// # Errors
    /// [`LayoutError::Bucket`], with the value that is not allowed.
    pub fn with_buckets(
        mut self,
        definitions: &BTreeMap<String, BucketDefinition>,
    ) -> Result<Layout, LayoutError> {
        self.buckets = Arc::new(Buckets::new(definitions, self.replicas)?);
        Ok(self.with_digest())
    }

    /// Makes the layout that follows this one, with these members. Each member holds its share of
    /// the partitions, and as few replicas as possible move.
    ///
    /// # Errors
    /// [`LayoutError`], with the value that is not allowed.
    pub fn next(&self, members: Vec<Member>) -> Result<Layout, LayoutError> {
        self.next_with(members, self.replicas)
    }

    fn next_with(&self, members: Vec<Member>, replicas: u8) -> Result<Layout, LayoutError> {
        self.compute(members, self.partitions(), replicas, &|p| self.replicas_of(p, self.replicas).to_vec())
    }

    /// Makes the layout that follows this one, by applying some changes.
    ///
    /// # Errors
    /// [`LayoutError`] if a change is not possible in this layout, or if the changes together make
    /// no valid layout.
    pub fn changed(&self, changes: &[StagedChange]) -> Result<Layout, LayoutError> {
        let mut outline = self.outline();
        for staged in changes {
            outline.apply(&staged.change)?;
        }
        let mut layout = self.next_with(outline.members, outline.replicas)?;
        layout.gone = outline.gone;
        layout.changes = changes.to_vec();
        layout.with_buckets(&outline.buckets)
    }

    /// Returns a copy of the members, N and buckets, to which changes can be applied.
    pub(crate) fn outline(&self) -> Outline {
        Outline {
            number: self.number + 1,
            members: self.members.clone(),
            replicas: self.replicas,
            gone: self.gone.clone(),
            buckets: self.buckets.definitions(),
        }
    }

    fn compute(
        &self,
        mut members: Vec<Member>,
        partitions: u32,
        replicas: u8,
        previous: &dyn Fn(PartitionId) -> Vec<NodeId>,
    ) -> Result<Layout, LayoutError> {
        members.sort_by_key(|member| member.id);
        check(&members, partitions, replicas)?;
        let assignment = assign(&members, partitions, replicas, previous)
            .into_iter()
            .flatten()
            .map(|node| members[node as usize].id)
            .collect();
        let (number, parent, gone) = (self.number + 1, self.digest, self.gone.clone());
        let (changes, buckets) = (Vec::new(), self.buckets.clone());
        let layout =
            Layout { number, parent, replicas, members, assignment, gone, changes, buckets, digest: 0 };
        Ok(layout.with_digest())
    }

    fn with_digest(mut self) -> Layout {
        let mut hash = Xxh3::new();
        hash.update(&self.encode());
        self.digest = hash.digest();
        self
    }

    /// Returns the layout's number. The first layout has 1, and each later one the next number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the digest of the layout from which this one was made; 0 for the first.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// Returns a hash of the whole content. Nodes compare digests, because two layouts may have the
    /// same number.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Returns N, the number of replicas of each partition.
    pub fn replicas(&self) -> u8 {
        self.replicas
    }

    /// Returns Q, the number of partitions.
    pub fn partitions(&self) -> u32 {
        (self.assignment.len() / self.replicas as usize) as u32
    }

    /// Returns the members, sorted by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the way in which nodes left the cluster, by name. A node whose disk was declared
    /// lost stays in the map when it joins again.
    pub fn gone(&self) -> &BTreeMap<String, Departure> {
        &self.gone
    }

    /// True if this node's disk was declared lost, and the node has not joined again.
    pub fn is_lost(&self, node: NodeId) -> bool {
        let lost = |how: &Departure| matches!(how, Departure::Lost { .. });
        self.gone.iter().any(|(name, how)| lost(how) && NodeId::of_name(name) == node)
    }

    /// Returns the number of the layout that last declared this node's disk lost, also if the node
    /// has joined again. 0: no layout did.
    pub fn lost_by(&self, node: NodeId) -> u64 {
        let of_node = self.gone.iter().find(|(name, _)| NodeId::of_name(name) == node);
        match of_node.map(|(_, how)| *how) {
            Some(Departure::Lost { by }) => by,
            Some(Departure::Returned { lost_by }) => lost_by,
            Some(Departure::Left) | None => 0,
        }
    }

    /// Returns the definitions of buckets.
    pub fn buckets(&self) -> &Arc<Buckets> {
        &self.buckets
    }

    /// Returns the changes that made this layout from its parent.
    pub fn changes(&self) -> &[StagedChange] {
        &self.changes
    }

    /// True if the node is one of the N replicas of the partition. (A bucket with a smaller n uses
    /// only the first n of them.)
    pub fn holds(&self, node: NodeId, partition: PartitionId) -> bool {
        self.replicas_of(partition, u8::MAX).contains(&node)
    }

    /// Returns the member with this id.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&node, |member| member.id).ok().map(|at| &self.members[at])
    }

    /// Returns the member's name, or its id if it is no member.
    pub fn name_of(&self, node: NodeId) -> String {
        self.member(node).map_or_else(|| format!("{node:?}"), |member| member.name.clone())
    }

    /// Returns the partition of a key with this hash. Q is a power of two, so the top bits of the
    /// hash are the partition's number.
    pub fn partition_of(&self, key_hash: u64) -> PartitionId {
        let bits = self.partitions().trailing_zeros();
        PartitionId(if bits == 0 { 0 } else { (key_hash >> (64 - bits)) as u16 })
    }

    /// Returns the first `n` replicas of a partition, in order of preference. `n` is the n of a
    /// bucket. If it is larger than N, all N replicas are returned.
    pub fn replicas_of(&self, partition: PartitionId, n: u8) -> &[NodeId] {
        let start = partition.0 as usize * self.replicas as usize;
        &self.assignment[start..start + n.min(self.replicas) as usize]
    }

    /// Returns the replicas of a bucket's keys in a partition, in order of preference.
    pub fn replicas_for(&self, partition: PartitionId, bucket: &str) -> &[NodeId] {
        self.replicas_of(partition, self.buckets.get(bucket).n)
    }

    /// Returns the fallbacks of a partition in order: all nodes that are not among its first `n`
    /// replicas.
    ///
    /// The order is the rendezvous-hash order of (partition, node), so that the partitions of one
    /// node have different fallbacks. If the node fails, many nodes share its load.
    pub fn fallbacks_of(&self, partition: PartitionId, n: u8) -> Vec<NodeId> {
        let nodes: Vec<NodeId> = self.members.iter().map(|member| member.id).collect();
        let replicas = self.replicas_of(partition, n);
        rendezvous_order(partition, &nodes)
            .into_iter()
            .map(|node| nodes[node as usize])
            .filter(|node| !replicas.contains(node))
            .collect()
    }

    /// Returns the number of partitions of which a node is a replica, and of which it is the first.
    pub fn load_of(&self, node: NodeId) -> Load {
        let replicas = self.replicas as usize;
        Load {
            partitions: self.assignment.iter().filter(|&&id| id == node).count() as u32,
            first: self.assignment.iter().step_by(replicas).filter(|&&id| id == node).count() as u32,
        }
    }

    /// Encodes the layout, for clients and other nodes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u64(&mut out, self.number);
        put_u64(&mut out, self.parent);
        out.push(self.replicas);
        put_varint(&mut out, self.members.len() as u64);
        for member in &self.members {
            for text in [&member.name, &member.address, &member.zone] {
                put_bytes(&mut out, text.as_bytes());
            }
            put_varint(&mut out, u64::from(member.weight));
        }
        put_varint(&mut out, u64::from(self.partitions()));
        for id in &self.assignment {
            let at = self.members.binary_search_by_key(id, |member| member.id).expect("replicas are members");
            put_varint(&mut out, at as u64);
        }
        put_varint(&mut out, self.gone.len() as u64);
        for (name, how) in &self.gone {
            put_bytes(&mut out, name.as_bytes());
            let (kind, number) = match how {
                Departure::Left => (0, 0),
                Departure::Lost { by } => (1, *by),
                Departure::Returned { lost_by } => (2, *lost_by),
            };
            out.push(kind);
            put_varint(&mut out, number);
        }
        put_varint(&mut out, self.changes.len() as u64);
        self.changes.iter().for_each(|staged| staged.write(&mut out));
        let definitions = self.buckets.definitions();
        put_varint(&mut out, definitions.len() as u64);
        for (name, definition) in &definitions {
            put_bytes(&mut out, name.as_bytes());
            definition.encode(&mut out);
        }
        out
    }

    /// Decodes a layout that `encode` wrote.
    ///
    /// # Errors
    /// [`LayoutError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Layout, LayoutError> {
        let mut reader = Reader::new(bytes);
        let number = reader.u64()?;
        let parent = reader.u64()?;
        let replicas = reader.byte()?;
        let mut members = Vec::new();
        for _ in 0..reader.count(4)? {
            let (name, address, zone) = (reader.text()?, reader.text()?, reader.text()?);
            let weight = reader.varint()?;
            let weight = u16::try_from(weight).map_err(|_| LayoutError::Malformed)?;
            members.push(Member { weight, ..Member::new(name, address, zone) });
        }
        let partitions = u32::try_from(reader.varint()?).map_err(|_| LayoutError::Malformed)?;
        if !members.windows(2).all(|w| w[0].id < w[1].id) {
            return Err(LayoutError::Malformed);
        }
        check(&members, partitions, replicas)?;
        let mut assignment = Vec::new();
        reader.check_count(u64::from(partitions) * u64::from(replicas))?;
        for _ in 0..partitions * u32::from(replicas) {
            let at = reader.varint()? as usize;
            assignment.push(members.get(at).ok_or(LayoutError::Malformed)?.id);
        }
        let distinct = assignment
            .chunks(replicas as usize)
            .all(|ids| ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)));
        let mut gone = BTreeMap::new();
        for _ in 0..reader.count(3)? {
            let name = reader.text()?.to_owned();
            let (kind, number) = (reader.byte()?, reader.varint()?);
            let how = match kind {
                0 => Departure::Left,
                1 => Departure::Lost { by: number },
                2 => Departure::Returned { lost_by: number },
                _ => return Err(LayoutError::Malformed),
            };
            gone.insert(name, how);
        }
        let mut changes = Vec::new();
        for _ in 0..reader.count(9)? {
            changes.push(StagedChange::read(&mut reader)?);
        }
        let mut definitions = BTreeMap::new();
        for _ in 0..reader.count(13)? {
            definitions.insert(reader.text()?.to_owned(), BucketDefinition::decode(&mut reader)?);
        }
        if reader.remaining() != 0 || !distinct {
            return Err(LayoutError::Malformed);
        }
        let buckets = Arc::default();
        let layout =
            Layout { number, parent, replicas, members, assignment, gone, changes, buckets, digest: 0 };
        layout.with_buckets(&definitions)
    }
}

/// A node's share of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Partitions of which the node is a replica.
    pub partitions: u32,
    /// Partitions of which the node is the first replica.
    pub first: u32,
}

fn check(members: &[Member], partitions: u32, replicas: u8) -> Result<(), LayoutError> {
    if !PARTITIONS.contains(&partitions) || !partitions.is_power_of_two() {
        return Err(LayoutError::Partitions { partitions });
    }
    if replicas == 0 {
        return Err(LayoutError::NoReplicas);
    }
    if members.len() < replicas as usize {
        return Err(LayoutError::TooFewMembers { replicas, members: members.len() });
    }
    if members.len() > MAX_MEMBERS {
        return Err(LayoutError::TooManyMembers { members: members.len() });
    }
    if let Some(Member { name, weight, .. }) = members.iter().find(|member| !WEIGHTS.contains(&member.weight))
    {
        return Err(LayoutError::Weight { name: name.clone(), weight: *weight });
    }
    match members.windows(2).find(|w| w[0].id == w[1].id) {
        Some(same) => Err(LayoutError::SameName { name: same[0].name.clone() }),
        None => Ok(()),
    }
}
