//! Faults of the cluster, and their repair: crashes, pauses, partitions, wrong clocks, full, wiped
//! and damaged disks.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_core::{Key, Member, NodeId};

use super::network::FIRST_CLIENT;
use super::process::{Cluster, Process};
use super::sim::Sim;
use super::storage::Durability;
use crate::oracle::Rule;
use crate::records::{decode_layouts, layouts_key};

/// Processes: start, stop, crash, pause.
impl Sim {
    /// Starts a node with the records on its disk. Does nothing if the node runs.
    pub fn start(&self, node: usize) {
        if self.is_running(node) {
            return;
        }
        self.log.add(format!("start n{node}"));
        let mut machines = self.machines.borrow_mut();
        let members: Vec<Member> = machines.iter().map(|machine| machine.member.clone()).collect();
        let cluster = Cluster {
            options: &self.options,
            run_start: self.run_start,
            first_layout: &self.first_layout,
            members: &members,
            net: &self.net,
            log: &self.log,
            oracle: &self.oracle,
        };
        let process = Process::start(&mut machines[node], &cluster);
        self.processes.borrow_mut()[node] = Some(process);
    }

    /// Kills a node: uncommitted records are lost, and its peers see closed connections.
    pub fn kill(&self, node: usize) {
        self.log.add(format!("kill n{node}"));
        self.end(node);
    }

    /// Cuts a node's power: uncommitted records are lost, and the peers' connections to the node
    /// stay open.
    pub fn power_off(&self, node: usize) {
        self.log.add(format!("power off n{node}"));
        self.net.silence(node);
        self.end(node);
    }

    /// Stops a node cleanly: it finishes its open requests first.
    pub async fn stop(&self, node: usize) {
        self.log.add(format!("stop n{node}"));
        let stopping = self.processes.borrow()[node].as_ref().and_then(Process::stop);
        if let Some(stopping) = stopping {
            for _ in 0..300 {
                if !stopping.is_busy() {
                    break;
                }
                self.sleep(10).await;
            }
        }
        self.sleep(1_100).await;
        self.end(node);
    }

    fn end(&self, node: usize) {
        let process = self.processes.borrow_mut()[node].take();
        let Some(process) = process else { return };
        if let Some(number) = process.layout_number() {
            self.check_stored_layout(node, number);
        }
        process.end();
        let machines = self.machines.borrow();
        machines[node].disk.lose_uncommitted();
        if machines[node].durability == Durability::Interval {
            self.oracle.disk_lost(node, self.now_ms());
        }
    }

    /// Checks that a node whose process ends has committed the layout that it acts on, or a newer
    /// one. It reads the committed layout when it starts again.
    ///
    /// Only the layouts' numbers are compared. Two layouts can have one number, and the node may
    /// have stored one of them while it still acts on the other.
    fn check_stored_layout(&self, node: usize, number: u64) {
        let stored = self.machines.borrow()[node].disk.image().get(&layouts_key()).cloned();
        let layouts = stored.and_then(|bytes| decode_layouts(NodeId(0), &bytes));
        let stored = layouts.map_or(self.first_layout.number(), |layouts| layouts.newest().number());
        if stored < number {
            let text = format!("n{node} acts on layout {number}, but has only stored layout {stored}");
            self.oracle.report(Rule::Whole, text);
        }
    }

    /// Freezes a node.
    pub fn pause(&self, node: usize) {
        self.log.add(format!("pause n{node}"));
        if let Some(process) = &self.processes.borrow()[node] {
            process.pause();
        }
    }

    /// Continues a frozen node.
    pub fn resume(&self, node: usize) {
        let resumed = self.processes.borrow()[node].as_ref().is_some_and(Process::resume);
        if resumed {
            self.log.add(format!("resume n{node}"));
        }
    }
}

/// Disks and clocks.
impl Sim {
    /// Wipes a node's disk. Panics if the node runs.
    pub fn wipe(&self, node: usize) {
        self.log.add(format!("wipe n{node}"));
        assert!(!self.is_running(node), "stop n{node} before its disk is wiped");
        self.machines.borrow()[node].disk.wipe();
        self.oracle.disk_lost(node, self.now_ms());
    }

    /// Replaces a node's disk by an earlier image of it. Panics if the node runs.
    pub fn restore(&self, node: usize, image: BTreeMap<Bytes, Bytes>) {
        self.log.add(format!("restore n{node}"));
        assert!(!self.is_running(node), "stop n{node} before its disk is replaced");
        self.machines.borrow()[node].disk.restore(image);
        self.oracle.disk_lost(node, self.now_ms());
    }

    /// Damages the record of a key on a node. The oracle counts the node's disk as lost.
    pub fn damage(&self, node: usize, key: &Key) {
        if self.machines.borrow()[node].disk.damage(&self.storage_key(key)) {
            self.log.add(format!("damage {key:?} on n{node}"));
            self.oracle.disk_lost(node, self.now_ms());
        }
    }

    /// Fills a node's disk: commits fail.
    pub fn fill_disk(&self, node: usize) {
        self.log.add(format!("disk of n{node} full: true"));
        self.machines.borrow()[node].disk.fill();
    }

    /// Frees a node's disk: commits succeed again.
    pub fn free_disk(&self, node: usize) {
        self.log.add(format!("disk of n{node} full: false"));
        self.machines.borrow()[node].disk.free();
    }

    /// Sets the difference of a node's wall clock from the true time, in milliseconds.
    pub fn skew(&self, node: usize, ms: i64) {
        self.log.add(format!("skew n{node} by {ms} ms"));
        self.machines.borrow()[node].skew_ms.store(ms, Ordering::Relaxed);
    }
}

/// Network.
impl Sim {
    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, node: usize) {
        self.log.add(format!("isolate n{node}"));
        for other in 0..self.count() {
            if other != node {
                self.net.cut(node, other);
                self.net.cut(other, node);
            }
        }
    }

    /// Cuts the nodes of a group off from all others, in both directions.
    pub fn cut_off(&self, group: &[usize]) {
        self.log.add(format!("cut off {group:?}"));
        for &one in group {
            for other in (0..self.count()).filter(|other| !group.contains(other)) {
                self.net.cut(one, other);
                self.net.cut(other, one);
            }
        }
    }

    /// Ends all cuts, and releases all bytes that were held back.
    pub fn heal(&self) {
        self.log.add("heal");
        self.net.heal();
        self.net.release();
    }

    /// Holds back the replies of a node to client 0.
    pub fn hold_replies(&self, node: usize) {
        self.net.hold(node, FIRST_CLIENT);
    }
}
