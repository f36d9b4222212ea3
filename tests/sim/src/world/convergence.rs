//! Convergence: ends all faults, waits until the replicas are identical, and checks the end state.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_core::{Key, Object, StorageKey};

use super::sim::Sim;
use crate::oracle::Rule;
use crate::records::{decode_object, is_hint_key};

impl Sim {
    /// Waits until all running nodes are connected and none is recovering. Reports a violation if
    /// they are not within 100 seconds.
    pub async fn until_ready(&self) {
        for _ in 0..2_000 {
            if self.is_ready().await {
                return;
            }
            self.sleep(50).await;
        }
        self.oracle.report(Rule::Crash, "the cluster is not ready after 100 s".into());
    }

    async fn is_ready(&self) -> bool {
        let running: Vec<usize> = self.members().into_iter().filter(|&node| self.is_running(node)).collect();
        for &node in &running {
            let Some(status) = self.status(node).await else { return false };
            let up = status.members.iter().filter(|member| member.state == "up").count();
            if up < running.len() || status.recovering > 0 {
                return false;
            }
        }
        true
    }

    /// Ends all faults, starts all nodes, waits for hints and layout changes, and repeats
    /// anti-entropy until a round finds no difference.
    ///
    /// Reports a violation if replicas then differ or a hint is left.
    pub async fn converge(&self) {
        self.log.add("settle");
        self.heal();
        for node in 0..self.count() {
            self.skew(node, 0);
            self.free_disk(node);
            self.resume(node);
            self.start(node);
        }
        self.until_ready().await;
        // The network may have held back an operator's commit. It may arrive only now, and begin
        // another layout change.
        for _ in 0..3 {
            let layout = self.layout().digest();
            let differences = self.until_identical().await;
            if differences.is_empty() {
                return;
            }
            if self.layout().digest() == layout {
                differences.into_iter().for_each(|text| self.oracle.report(Rule::Convergence, text));
                return;
            }
        }
        self.oracle.report(Rule::Convergence, "the layout changes again and again".into());
    }

    /// Waits until no layout change runs and no hint is left, and runs anti-entropy. Returns the
    /// differences that remain.
    async fn until_identical(&self) -> Vec<String> {
        self.until_layout_change_ends().await;
        for _ in 0..60 {
            let mut hints = 0;
            for node in self.members() {
                hints += self.status(node).await.map_or(1, |status| status.hints);
            }
            if hints == 0 {
                break;
            }
            self.sleep(1_000).await;
        }
        for _ in 0..20 {
            let mut found = 0;
            for node in self.members() {
                found += self.repair_round(node).await;
            }
            if found == 0 {
                break;
            }
        }
        // Replicas may still differ because a request to collect a tombstone is on its way. So wait
        // for up to 10 s.
        let mut differences = self.differences();
        for _ in 0..20 {
            if differences.is_empty() {
                break;
            }
            self.sleep(500).await;
            differences = self.differences();
        }
        differences
    }

    /// Runs anti-entropy of a node with each of its peers, and waits for it. Returns the number of
    /// keys that differed.
    pub async fn repair_round(&self, node: usize) -> u64 {
        let Some(before) = self.start_repair(node).await else { return 1 };
        let goal = before.rounds + self.members().len() as u64 - 1;
        for _ in 0..200 {
            self.sleep(100).await;
            if let Some(now) = self.repair_status(node).await
                && now.rounds >= goal
            {
                return now.divergent_keys - before.divergent_keys;
            }
        }
        self.oracle.report(Rule::Convergence, format!("n{node}: a round of repair does not end"));
        1
    }

    /// Returns all records, by node. Nodes whose disks were declared lost are left out: the cluster
    /// refuses them, whatever they hold.
    fn records(&self) -> BTreeMap<usize, BTreeMap<Bytes, Bytes>> {
        let layout = self.layout();
        let machines = self.machines.borrow();
        let in_service = machines.iter().filter(|machine| !layout.is_lost(machine.member.id));
        in_service.map(|machine| (machine.number, machine.disk.records())).collect()
    }

    /// Returns the objects under each stored key, by node.
    fn objects(&self) -> BTreeMap<Bytes, BTreeMap<usize, Object>> {
        let mut objects: BTreeMap<Bytes, BTreeMap<usize, Object>> = BTreeMap::new();
        for (node, records) in self.records() {
            for (key, value) in records {
                if StorageKey::from_peer(&key).is_some()
                    && let Some(object) = decode_object(&value)
                {
                    objects.entry(key).or_default().insert(node, object);
                }
            }
        }
        objects
    }

    /// Describes each key whose replicas differ or that a node holds without being its replica, and
    /// each node that still holds hints.
    fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, holders) in self.objects() {
            let key = StorageKey::from_peer(&key).expect("a key of an object");
            let replicas = self.replicas_of(&key);
            let digests: BTreeSet<_> =
                replicas.iter().map(|node| holders.get(node).map(|object| object.digest())).collect();
            if digests.len() != 1 || holders.keys().any(|node| !replicas.contains(node)) {
                let held: BTreeMap<_, _> =
                    holders.iter().map(|(node, object)| (node, (object.digest(), object.live()))).collect();
                differences.push(format!("{key:?} of {replicas:?} is held as {held:?}"));
            }
        }
        for (node, records) in self.records() {
            let hints = records.keys().filter(|key| is_hint_key(key)).count();
            if hints > 0 {
                differences.push(format!("n{node} still holds {hints} hints"));
            }
        }
        differences
    }

    /// Checks the end state of these keys. Call it only after [`Sim::converge`].
    pub fn check_end(&self, keys: &[Key]) {
        let objects = self.objects();
        for key in keys {
            let stored_key = self.storage_key(key);
            let replicas = self.replicas_of(&stored_key);
            let holders = objects.get(stored_key.as_bytes());
            let end = holders.and_then(|holders| holders.get(&replicas[0])).cloned().unwrap_or_default();
            self.oracle.check_end(&stored_key, &end, &replicas);
        }
    }
}
