//! Minimum-cost maximum flow on small graphs, by the primal-dual method. Each round finds the
//! length of the shortest paths, then augments the flow along all paths of that length. There are
//! few rounds, because paths have few distinct lengths here.

use std::collections::VecDeque;

struct Edge {
    to: usize,
    capacity: i64,
    cost: i64,
}

/// A directed graph with capacities and costs. Edge 2i and its residual edge 2i+1 are adjacent in
/// `edges`.
pub(crate) struct Flow {
    edges: Vec<Edge>,
    outgoing: Vec<Vec<usize>>,
}

const UNREACHED: i64 = i64::MAX;

impl Flow {
    pub(crate) fn new(nodes: usize) -> Flow {
        Flow { edges: Vec::new(), outgoing: vec![Vec::new(); nodes] }
    }

    /// Adds an edge and returns its number.
    pub(crate) fn edge(&mut self, from: usize, to: usize, capacity: i64, cost: i64) -> usize {
        let number = self.edges.len();
        self.edges.push(Edge { to, capacity, cost });
        self.edges.push(Edge { to: from, capacity: 0, cost: -cost });
        self.outgoing[from].push(number);
        self.outgoing[to].push(number + 1);
        number
    }

    /// Returns the flow through an edge after `run`.
    pub(crate) fn through(&self, edge: usize) -> i64 {
        self.edges[edge + 1].capacity
    }

    /// Sends as much as possible from `source` to `sink`, at the least cost. Returns the amount.
    pub(crate) fn run(&mut self, source: usize, sink: usize) -> i64 {
        let mut total = 0;
        loop {
            let distance = self.distances(source);
            if distance[sink] == UNREACHED {
                return total;
            }
            let mut next = vec![0; self.outgoing.len()];
            let mut on_path = vec![false; self.outgoing.len()];
            loop {
                let sent = self.augment(source, sink, i64::MAX, &distance, &mut next, &mut on_path);
                if sent == 0 {
                    break;
                }
                total += sent;
            }
        }
    }

    fn distances(&self, source: usize) -> Vec<i64> {
        let mut distance = vec![UNREACHED; self.outgoing.len()];
        let mut queued = vec![false; self.outgoing.len()];
        let mut queue = VecDeque::from([source]);
        distance[source] = 0;
        while let Some(node) = queue.pop_front() {
            queued[node] = false;
            for &number in &self.outgoing[node] {
                let edge = &self.edges[number];
                let through = distance[node] + edge.cost;
                if edge.capacity > 0 && through < distance[edge.to] {
                    distance[edge.to] = through;
                    if !queued[edge.to] {
                        queued[edge.to] = true;
                        queue.push_back(edge.to);
                    }
                }
            }
        }
        distance
    }

    /// Augments the flow along edges of shortest paths, and returns the amount sent. `next` is, for
    /// each node, the position of its first edge that is not used up in this round.
    fn augment(
        &mut self,
        node: usize,
        sink: usize,
        limit: i64,
        distance: &[i64],
        next: &mut [usize],
        on_path: &mut [bool],
    ) -> i64 {
        if node == sink {
            return limit;
        }
        on_path[node] = true;
        let mut sent = 0;
        while next[node] < self.outgoing[node].len() && sent < limit {
            let number = self.outgoing[node][next[node]];
            let Edge { to, capacity, cost } = self.edges[number];
            if capacity > 0 && !on_path[to] && distance[to] == distance[node] + cost {
                let part = self.augment(to, sink, (limit - sent).min(capacity), distance, next, on_path);
                self.edges[number].capacity -= part;
                self.edges[number ^ 1].capacity += part;
                sent += part;
                if sent == limit {
                    break;
                }
            }
            next[node] += 1;
        }
        on_path[node] = false;
        sent
    }
}
