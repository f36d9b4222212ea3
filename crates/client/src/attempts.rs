//! One operation: attempts at one node after the other, until one succeeds, an error cannot be
//! retried, or the deadline passes.
//!
//! A write keeps its request id over all attempts. Each attempt has a deadline of its own. After an
//! attempt that may have been applied, the next one begins only when that deadline has passed, so
//! that two attempts are never under way together.

use std::rc::Rc;
use std::time::Duration;

use quorate_core::RequestError;
use quorate_core::environment::Environment;
use quorate_core::request::{ClientReply, ClientRequest, ClientResult};
use quorate_core::seams::ReplyTo;
use quorate_rpc::ClientAnswer;
use quorate_rpc::network::Network;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::ClientError;
use crate::routes::{Route, Routes};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Time after the first attempt in which a write that may have been applied is repeated. A node
/// that does not recognise the write's request id would apply it again. Nodes recognise it for 30 s
/// (their `max_request_timeout_ms`), and the last attempt needs a part of that time.
const RETRY_WINDOW: Duration = Duration::from_secs(15);
/// Share of an attempt's time that the node gets as its timeout. The rest is for the network.
const NODE_SHARE: f64 = 0.9;
/// Longest time of the first attempt. The limit doubles with each attempt.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(50);

pub(crate) struct Attempts<'a> {
    pub(crate) routes: &'a Routes,
    pub(crate) network: &'a Rc<dyn Network>,
    pub(crate) environment: &'a dyn Environment,
    pub(crate) deadline: Instant,
    /// Whole time of the operation, for error messages.
    pub(crate) timeout: Duration,
}

/// Result of one attempt.
enum Outcome {
    Answered(ClientResult),
    /// The request was sent and no answer arrived: it may have been applied.
    Lost,
    /// The request was not sent, for this reason.
    Unreachable(String),
}

/// Results of the attempts so far.
#[derive(Default)]
struct Known {
    /// Set if an attempt of a write may have been applied. The numbers are the acks needed and the
    /// acks received, each the largest of all such attempts.
    maybe_written: Option<(u8, u8)>,
    last: Option<RequestError>,
    unreachable: Vec<String>,
}

impl Attempts<'_> {
    pub(crate) async fn run(
        &self,
        key_hash: Option<u64>,
        mut request: ClientRequest,
    ) -> Result<ClientReply, ClientError> {
        let is_write = matches!(request, ClientRequest::Put(_));
        let mut known = Known::default();
        let mut pause = FIRST_PAUSE;
        let mut tried: Vec<Rc<Route>> = Vec::new();
        let mut longest = FIRST_ATTEMPT;
        let begun = Instant::now();
        while let Some(attempt_deadline) = self.next_deadline(longest) {
            longest = longest.saturating_mul(2);
            if known.maybe_written.is_some() && begun.elapsed() > RETRY_WINDOW {
                break;
            }
            let Some((route, none_left)) = self.next_route(key_hash, &mut tried) else { break };
            let outcome = self.attempt(&route, &request, attempt_deadline).await;
            match outcome {
                Outcome::Answered(Ok(reply)) => return Ok(reply),
                Outcome::Answered(Err(error)) if !error.is_retryable() => {
                    known.last = Some(error);
                    break;
                }
                Outcome::Answered(Err(error)) => {
                    if let RequestError::Indeterminate { needed, received } = error {
                        known.maybe_written(needed, received);
                        count_up(&mut request);
                        tokio::time::sleep_until(attempt_deadline).await;
                    } else {
                        self.rest(&mut pause).await;
                    }
                    known.last = Some(error);
                }
                Outcome::Lost => {
                    route.avoid();
                    if is_write {
                        known.maybe_written(1, 0);
                        count_up(&mut request);
                        tokio::time::sleep_until(attempt_deadline).await;
                    }
                }
                Outcome::Unreachable(reason) => {
                    if !known.unreachable.contains(&reason) {
                        known.unreachable.push(reason);
                    }
                    if none_left {
                        self.rest(&mut pause).await;
                    }
                }
            }
        }
        Err(self.final_error(known, is_write))
    }

    /// Returns the best node that was not tried yet, and true if it is the last such node. Once all
    /// nodes were tried, begins again with the best of all.
    fn next_route(&self, key_hash: Option<u64>, tried: &mut Vec<Rc<Route>>) -> Option<(Rc<Route>, bool)> {
        if tried.is_empty()
            && let Some(route) = key_hash.and_then(|hash| self.routes.first(hash))
        {
            tried.push(route.clone());
            return Some((route, false));
        }
        let was_tried =
            |tried: &[Rc<Route>], route: &Rc<Route>| tried.iter().any(|other| Rc::ptr_eq(other, route));
        let candidates = self.routes.candidates(key_hash, self.network);
        if candidates.iter().all(|route| was_tried(tried, route)) {
            tried.clear();
        }
        let route = candidates.iter().find(|route| !was_tried(tried, route))?;
        tried.push(route.clone());
        Some((route.clone(), tried.len() == candidates.len()))
    }

    /// Sleeps for a random time between half of `pause` and all of it, and doubles `pause`. The
    /// random time keeps clients that were refused together from returning together.
    async fn rest(&self, pause: &mut Duration) {
        let jitter = (self.environment.random() % 1024) as f64 / 2048.0;
        tokio::time::sleep(pause.mul_f64(0.5 + jitter).min(self.left())).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the deadline of the next attempt, or `None` if no time is left. An attempt gets half
    /// of the time that is left, so that another attempt is possible. It gets at most `longest`, so
    /// that the client does not wait long for a node that died during a write.
    fn next_deadline(&self, longest: Duration) -> Option<Instant> {
        let left = self.left();
        (!left.is_zero()).then(|| Instant::now() + (left / 2).min(longest).max(SHORTEST_ATTEMPT).min(left))
    }

    async fn attempt(&self, route: &Rc<Route>, request: &ClientRequest, deadline: Instant) -> Outcome {
        let sender = match route.sender(&**self.network, deadline).await {
            Ok(sender) => sender,
            Err(reason) => return Outcome::Unreachable(reason),
        };
        let (arrived, answer) = oneshot::channel();
        let reply = ReplyTo::call(move |answer| {
            let _ = arrived.send(answer);
        });
        // The node's deadline is a little earlier than the client's, so that the node's own error
        // still arrives: it contains the number of acks.
        let timeout = deadline.saturating_duration_since(Instant::now()).mul_f64(NODE_SHARE);
        sender.send(request.clone(), timeout, reply);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(ClientAnswer::Result(result))) => {
                route.answered();
                Outcome::Answered(result)
            }
            Ok(Ok(ClientAnswer::ConnectionLost) | Err(_)) | Err(_) => Outcome::Lost,
        }
    }

    fn final_error(&self, known: Known, is_write: bool) -> ClientError {
        if let Some((needed, received)) = known.maybe_written {
            return RequestError::Indeterminate { needed, received }.into();
        }
        match known.last {
            Some(error) => error.into(),
            None if !known.unreachable.is_empty() => {
                ClientError::Unreachable { detail: known.unreachable.join("; ") }
            }
            None if is_write => RequestError::Unavailable { needed: 1, reachable: 0 }.into(),
            None => {
                let after_ms = self.timeout.as_millis() as u32;
                RequestError::DeadlineExceeded { needed: 1, received: 0, after_ms }.into()
            }
        }
    }
}

impl Known {
    fn maybe_written(&mut self, needed: u8, received: u8) {
        let (most_needed, most_received) = self.maybe_written.unwrap_or_default();
        self.maybe_written = Some((most_needed.max(needed), most_received.max(received)));
    }
}

fn count_up(request: &mut ClientRequest) {
    if let ClientRequest::Put(put) = request {
        put.attempt = put.attempt.saturating_add(1);
    }
}
