//! Checks of a key's end state, when the run has converged, against every write to the key.

use std::collections::{BTreeMap, BTreeSet};

use quorate_core::{Dot, Object, RequestId, StorageKey};

use super::checker::Oracle;
use super::history::{ClientWrite, History};
use super::rules::Rule;

/// A key in its end state.
struct EndState<'a> {
    key: &'a StorageKey,
    /// The object that all replicas hold.
    object: &'a Object,
    /// The key's replicas.
    replicas: &'a [usize],
}

impl Oracle {
    /// Checks the end state of a key: `end` is the object that its `replicas` hold.
    pub fn check_end(&self, key: &StorageKey, end: &Object, replicas: &[usize]) {
        let end = EndState { key, object: end, replicas };
        let mut history = self.lock();
        history.check_live_versions(&end);
        history.check_acked_writes(&end);
        history.check_returned_versions(&end);
        history.check_shown_once(&end);
    }
}

impl History {
    /// Checks that each live version is as its client wrote it.
    fn check_live_versions(&mut self, end: &EndState<'_>) {
        let key = end.key;
        for version in end.object.live() {
            match self.writes.get(&version.request) {
                None => {
                    let text = format!("{key:?} holds {version:?}, which no client wrote");
                    self.report(Rule::NoInventedValue, text);
                }
                Some(write) if write.payload != version.payload || write.key != *key => {
                    let text = format!("{key:?} holds {version:?}, which was asked as {write:?}");
                    self.report(Rule::Whole, text);
                }
                Some(_) => {}
            }
        }
    }

    /// Checks that each acked write is live or replaced, unless too many disks were lost.
    fn check_acked_writes(&mut self, end: &EndState<'_>) {
        let EndState { key, object, replicas } = end;
        let writes: Vec<(RequestId, ClientWrite)> = self
            .writes
            .iter()
            .filter(|(_, write)| write.key == **key)
            .map(|(request, write)| (*request, write.clone()))
            .collect();
        for (request, write) in writes {
            let Some(ack) = write.acked.filter(|ack| self.survives(ack, replicas)) else { continue };
            let dots = match ack.dots.is_empty() {
                true => self.dots_of_request.get(&request).cloned().unwrap_or_default(),
                false => ack.dots.clone(),
            };
            let mut known = BTreeMap::new();
            if !dots.iter().any(|dot| self.is_kept(*dot, key, object, &mut known)) {
                let text = format!(
                    "{key:?}: {request:?} = {:?} was acked ({ack:?}) and is neither there nor replaced; dots {dots:?}; end {object:?}",
                    write.payload
                );
                self.report(Rule::AckedWritesSurvive, text);
            }
        }
    }

    /// Checks that no live version was replaced by an acked write. A retried write may return: it
    /// is only counted.
    fn check_returned_versions(&mut self, end: &EndState<'_>) {
        let key = end.key;
        for version in end.object.live() {
            let replacers = self.replaced_by.get(&version.dot).cloned().unwrap_or_default();
            let acked_replacer = replacers.iter().find(|dot| {
                let write = self.writes.get(&self.versions[*dot].request);
                let ack = write.and_then(|write| write.acked.as_ref());
                ack.is_some_and(|ack| ack.dots.contains(dot) && self.survives(ack, end.replicas))
            });
            let Some(by) = acked_replacer else { continue };
            let retried = self.dots_of_request.get(&version.request).is_some_and(|dots| dots.len() > 1);
            if retried {
                self.retries_seen_twice += 1;
            } else {
                let text = format!("{key:?}: {:?} is back, although {by:?} had replaced it", version.dot);
                self.report(Rule::NothingReturns, text);
            }
        }
    }

    /// Checks that a read of the end state would show no write twice.
    fn check_shown_once(&mut self, end: &EndState<'_>) {
        let shown = end.object.shown();
        let shown: Vec<_> = shown.iter().map(|version| (version.request, version.payload.clone())).collect();
        let distinct: BTreeSet<_> = shown.iter().map(|(request, _)| *request).collect();
        if distinct.len() != shown.len() {
            let text = format!("{:?} shows one write twice: {shown:?}", end.key);
            self.report(Rule::RetriesAreOne, text);
        }
    }

    /// Returns true if the version `dot` is live in `end`, is a collected tombstone, or was
    /// replaced by a kept version. If the last write wins, a newer version counts as its
    /// replacement. `known` caches the answers.
    fn is_kept(&self, dot: Dot, key: &StorageKey, end: &Object, known: &mut BTreeMap<Dot, bool>) -> bool {
        if let Some(&answer) = known.get(&dot) {
            return answer;
        }
        known.insert(dot, false);
        let is_live = end.live().iter().any(|version| version.dot == dot);
        let newest_wins = self.last_write_wins.contains(key);
        let is_newer = |other: Dot| (other.stamp, other.actor) > (dot.stamp, dot.actor);
        let newer_wins = newest_wins && end.live().iter().any(|version| is_newer(version.dot));
        let newer_collected = newest_wins && self.newer_tombstone_collected(dot, key, end);
        let collected = (self.collected.contains(&dot) && !is_live) || newer_collected;
        let kept = is_live
            || newer_wins
            || collected
            || self
                .replaced_by
                .get(&dot)
                .is_some_and(|by| by.iter().any(|by| self.is_kept(*by, key, end, known)));
        known.insert(dot, kept);
        kept
    }
}
