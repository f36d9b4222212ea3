//! Clients that read, write, delete and retry, with the contexts that they have seen.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::quorum::QuorumSize;
use quorate_core::{Key, Payload};

use crate::random::Random;
use crate::world::{Sim, WriteMode, WriteOptions};

/// Number of clients in a run.
pub(super) const CLIENTS: usize = 5;

/// Largest number of attempts of one write.
const ATTEMPTS: u16 = 3;

/// Length of the padding that makes a value large.
const LARGE_VALUE_BYTES: usize = 1_100;

/// One client, which sends one request at a time.
pub(super) struct Client {
    number: usize,
    sim: Rc<Sim>,
    random: RefCell<Random>,
    keys: Vec<Key>,
    /// The newest context that the client has of each key.
    seen: RefCell<BTreeMap<Key, Bytes>>,
    /// Number of values written so far.
    values: Cell<u64>,
    mix: RequestMix,
}

/// The requests that a client sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestMix {
    /// Reads, writes and some deletes.
    Even,
    /// Reads, writes and many deletes: the client deletes most of its values soon after it wrote
    /// them.
    SoonDeleted,
}

/// Signals to the tasks of a run.
#[derive(Default)]
pub(super) struct Activity {
    /// True once the run injects no more faults. All tasks then end.
    pub(super) ended: Cell<bool>,
    /// True while clients send nothing.
    pub(super) quiet: Cell<bool>,
}

impl Client {
    pub(super) fn new(number: usize, sim: &Rc<Sim>, keys: Vec<Key>, mix: RequestMix) -> Client {
        Client {
            number,
            sim: sim.clone(),
            random: RefCell::new(sim.random()),
            keys,
            seen: RefCell::default(),
            values: Cell::new(0),
            mix,
        }
    }

    /// Sends requests until the run ends.
    pub(super) async fn run(&self, activity: &Activity) {
        while !activity.ended.get() {
            match activity.quiet.get() {
                true => self.sim.sleep(500).await,
                false => self.act().await,
            }
        }
    }

    fn draw(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    /// Draws the node of a request. Mostly it is a running one, because a real client knows which
    /// members are up.
    fn draw_node(&self) -> usize {
        let nodes = self.sim.count() as u64;
        let node = self.draw(nodes) as usize;
        if self.sim.is_running(node) || self.draw(100) < 10 {
            return node;
        }
        (0..self.sim.count()).find(|&node| self.sim.is_running(node)).unwrap_or(node)
    }

    fn draw_quorum(&self) -> QuorumSize {
        match self.draw(10) {
            0 => QuorumSize::Count(1),
            1 => QuorumSize::All,
            _ => QuorumSize::Default,
        }
    }

    fn new_value(&self) -> Payload {
        self.values.set(self.values.get() + 1);
        let mut value = format!("c{}-{}", self.number, self.values.get());
        // A record stores a value of more than 1,024 bytes apart, with a checksum of its own.
        if self.values.get().is_multiple_of(8) {
            value.push_str(&".".repeat(LARGE_VALUE_BYTES));
        }
        Payload::Value(value.into())
    }

    /// Waits for a moment, and sends one request or a few that belong together.
    async fn act(&self) {
        self.sim.sleep(5 + self.draw(250)).await;
        let key = self.keys[self.draw(self.keys.len() as u64) as usize].clone();
        let seen = self.seen.borrow().get(&key).cloned().unwrap_or_default();
        if self.mix == RequestMix::SoonDeleted && self.draw(100) < 60 {
            self.write(&key, self.new_value(), WriteMode::Overwrite(seen)).await;
            self.sim.sleep(self.draw(200)).await;
            self.read_and_delete(&key).await;
            return;
        }
        match self.draw(100) {
            0..30 => {
                let r = self.draw_quorum();
                self.read(&key, r).await;
            }
            30..55 => {
                if let Some(context) = self.read(&key, QuorumSize::Default).await {
                    self.write(&key, self.new_value(), WriteMode::Exactly(context)).await;
                }
            }
            55..72 => self.write(&key, self.new_value(), WriteMode::Overwrite(seen)).await,
            72..80 => self.write(&key, self.new_value(), WriteMode::Concurrent).await,
            80..86 => self.write(&key, self.new_value(), WriteMode::Exactly(seen)).await,
            _ => self.read_and_delete(&key).await,
        }
    }

    async fn read_and_delete(&self, key: &Key) {
        if let Some(context) = self.read(key, QuorumSize::Default).await {
            self.write(key, Payload::Tombstone, WriteMode::Exactly(context)).await;
        }
    }

    /// Reads a key. Returns the context if the read succeeds.
    async fn read(&self, key: &Key, r: QuorumSize) -> Option<Bytes> {
        let reply = self.sim.read(self.number, self.draw_node(), key, r).await?.ok()?;
        self.seen.borrow_mut().insert(key.clone(), reply.context.clone());
        Some(reply.context)
    }

    /// Writes a key, and retries the write under the same request id.
    async fn write(&self, key: &Key, payload: Payload, mode: WriteMode) {
        let request = self.sim.new_request();
        let w = self.draw_quorum();
        let sloppy = [None, None, Some(true), Some(false)][self.draw(4) as usize];
        let gives_up = self.draw(100) < 20;
        for attempt in 0..ATTEMPTS {
            let timeout_ms = 400 + self.draw(800);
            let options = WriteOptions { client: self.number, w, sloppy, timeout_ms, attempt };
            let since_ms = self.sim.now_ms();
            let via = self.draw_node();
            let reply = self.sim.attempt(via, key, payload.clone(), &mode, request, options).await;
            match reply {
                Some(Ok(reply)) => {
                    self.seen.borrow_mut().insert(key.clone(), reply.context);
                    return;
                }
                Some(Err(error)) if !error.is_retryable() => return,
                _ if gives_up => return,
                _ => {}
            }
            // The next attempt begins after the deadline of this one.
            let deadline_ms = since_ms + timeout_ms;
            self.sim.sleep(deadline_ms.saturating_sub(self.sim.now_ms()) + self.draw(300)).await;
        }
    }
}
