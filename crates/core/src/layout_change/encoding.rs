//! The encoding of a node's layouts and of its summary: see schema/layout.md.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::layouts::{
    Base, LayoutRecord, Layouts, MAX_ACTIVE, MAX_HISTORY, MAX_STAGED, MAX_SUMMARY, RESERVED_ACTIVE,
};
use super::phase::Phase;
use super::summary::LayoutSummary;
use crate::change::StagedChange;
use crate::layout::Layout;
use crate::layout_error::LayoutError;
use crate::member::NodeId;
use crate::varint::{Reader, put_bytes, put_u64, put_varint};

const FORMAT: u8 = 1;

impl Layouts {
    /// Encodes everything, for the disk and for other nodes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, self.active.len() as u64);
        self.active.iter().for_each(|layout| put_bytes(&mut out, &layout.encode()));
        [self.base.read, self.base.from, self.base.to].iter().for_each(|digest| put_u64(&mut out, *digest));
        out.push(self.own as u8);
        put_u64(&mut out, self.removed.unwrap_or(0));
        put_progress(&mut out, self.progress.iter().map(|(node, phase)| (*node, *phase)));
        put_varint(&mut out, self.history.len() as u64);
        for past in &self.history {
            put_u64(&mut out, past.number);
            put_u64(&mut out, past.digest);
            put_bytes(&mut out, past.summary.as_bytes());
        }
        put_varint(&mut out, self.staged.len() as u64);
        for (id, change) in &self.staged {
            StagedChange { id: *id, change: change.clone() }.write(&mut out);
        }
        put_varint(&mut out, self.cleared.len() as u64);
        self.cleared.iter().for_each(|id| put_u64(&mut out, *id));
        out
    }

    /// Decodes what `encode` wrote, on this node or another. `this` is the node that owns the
    /// result.
    ///
    /// # Errors
    /// [`LayoutError`] for any other bytes.
    pub fn decode(this: NodeId, bytes: &[u8]) -> Result<Layouts, LayoutError> {
        let mut reader = Reader::new(bytes);
        if reader.byte()? != FORMAT {
            return Err(LayoutError::Malformed);
        }
        let mut active: Vec<Arc<Layout>> = Vec::new();
        for _ in 0..reader.count(8)? {
            active.push(Arc::new(Layout::decode(reader.bytes()?)?));
        }
        let base = Base { read: reader.u64()?, from: reader.u64()?, to: reader.u64()? };
        let own = phase(reader.byte()?)?;
        let removed = Some(reader.u64()?).filter(|&by| by != 0);
        let progress = read_progress(&mut reader)?.into_iter().collect();
        let mut history = Vec::new();
        for _ in 0..reader.count(17)? {
            let (number, digest) = (reader.u64()?, reader.u64()?);
            let summary = reader.text()?.chars().take(MAX_SUMMARY).collect();
            history.push(LayoutRecord { number, digest, summary });
        }
        if history.len() > MAX_HISTORY {
            return Err(LayoutError::Malformed);
        }
        let mut staged = BTreeMap::new();
        for _ in 0..reader.count(9)? {
            let StagedChange { id, change } = StagedChange::read(&mut reader)?;
            staged.insert(id, change);
        }
        if staged.len() > 2 * MAX_STAGED {
            return Err(LayoutError::Malformed);
        }
        let mut cleared = BTreeSet::new();
        for _ in 0..reader.count(8)? {
            cleared.insert(reader.u64()?);
        }
        let chained = active.windows(2).all(|pair| pair[1].parent() == pair[0].digest());
        let one_ring = active.windows(2).all(|pair| pair[1].partitions() == pair[0].partitions());
        let ends = history.last().map(|past| past.digest) == active.last().map(|layout| layout.digest());
        if active.is_empty() || active.len() > MAX_ACTIVE + RESERVED_ACTIVE || !chained || !one_ring || !ends
        {
            return Err(LayoutError::Malformed);
        }
        Ok(Layouts { this, active, base, progress, own, history, staged, cleared, removed })
    }
}

fn phase(byte: u8) -> Result<Phase, LayoutError> {
    Phase::ALL.get(byte as usize).copied().ok_or(LayoutError::Malformed)
}

fn put_progress(out: &mut Vec<u8>, progress: impl ExactSizeIterator<Item = (NodeId, Phase)>) {
    put_varint(out, progress.len() as u64);
    for (node, phase) in progress {
        put_u64(out, node.0);
        out.push(phase as u8);
    }
}

fn read_progress(reader: &mut Reader<'_>) -> Result<Vec<(NodeId, Phase)>, LayoutError> {
    let mut progress = Vec::new();
    for _ in 0..reader.count(9)? {
        let node = NodeId(reader.u64()?);
        progress.push((node, phase(reader.byte()?)?));
    }
    Ok(progress)
}

impl LayoutSummary {
    /// Encodes the summary for other nodes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        [self.oldest, self.newest, self.staged].iter().for_each(|number| put_u64(&mut out, *number));
        put_progress(&mut out, self.progress.iter().copied());
        out
    }

    /// Decodes a summary that `encode` wrote.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<LayoutSummary, LayoutError> {
        let mut reader = Reader::new(bytes);
        if reader.byte()? != FORMAT {
            return Err(LayoutError::Malformed);
        }
        let (oldest, newest, staged) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let progress = read_progress(&mut reader)?;
        Ok(LayoutSummary { oldest, newest, staged, progress })
    }
}
