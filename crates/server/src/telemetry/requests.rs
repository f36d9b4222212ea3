//! Metrics of clients' requests.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters and histograms of the requests that this node coordinated.
pub(super) struct RequestMetrics {
    /// Counters by verb and outcome, in the order of `VERBS` and `OUTCOMES`. A counter is found by
    /// index, because this is faster than by label, and each request is counted.
    requests: Vec<Vec<Counter>>,
    durations: Vec<Histogram>,
    acks: Vec<Histogram>,
    siblings: Histogram,
    hinted: Counter,
}

const VERBS: [&str; 3] = ["get", "put", "scan"];
const OUTCOMES: [&str; 8] = [
    "ok",
    "Unavailable",
    "Indeterminate",
    "Overloaded",
    "DeadlineExceeded",
    "TooManySiblings",
    "StorageFailed",
    "InvalidRequest",
];

type VerbLabel = [(&'static str, &'static str); 1];
type VerbAndOutcome = [(&'static str, &'static str); 2];

impl RequestMetrics {
    /// Creates the metrics at zero.
    pub(super) fn register(registry: &mut Registry) -> RequestMetrics {
        let requests = Family::<VerbAndOutcome, Counter>::default();
        registry.register("requests", "Clients' requests by verb and outcome", requests.clone());
        let durations = Family::<VerbLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_1, 2.0, 16))
        });
        let help = "Time from a request's arrival to its reply";
        registry.register_with_unit("request_duration", help, Unit::Seconds, durations.clone());
        let acks = Family::<VerbLabel, Histogram>::new_with_constructor(|| {
            Histogram::new([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
        });
        let help = "Nodes that had acked or replied when a request was answered";
        registry.register("quorum_acks", help, acks.clone());
        let siblings = Histogram::new([0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0]);
        registry.register("read_siblings", "Number of siblings that a read returned", siblings.clone());
        let hinted = Counter::default();
        registry.register("hinted_acks", "Acks of writes that a fallback gave for a hint", hinted.clone());
        let by_outcome = |verb| {
            let counter = |outcome| requests.get_or_create(&[("verb", verb), ("outcome", outcome)]).clone();
            OUTCOMES.map(counter).to_vec()
        };
        RequestMetrics {
            requests: VERBS.map(by_outcome).to_vec(),
            durations: VERBS.map(|verb| durations.get_or_create(&[("verb", verb)]).clone()).to_vec(),
            acks: VERBS.map(|verb| acks.get_or_create(&[("verb", verb)]).clone()).to_vec(),
            siblings,
            hinted,
        }
    }

    /// Counts one request. The parameters are the fields of `EventKind::Served`.
    pub(super) fn record(
        &self,
        verb: &str,
        outcome: &str,
        micros: u64,
        acked: u8,
        siblings: u32,
        hinted: u8,
    ) {
        let Some(verb) = VERBS.iter().position(|known| *known == verb) else { return };
        let Some(outcome) = OUTCOMES.iter().position(|known| *known == outcome) else { return };
        self.requests[verb][outcome].inc();
        self.durations[verb].observe(micros as f64 / 1e6);
        if OUTCOMES[outcome] == "ok" {
            self.acks[verb].observe(f64::from(acked));
            if VERBS[verb] == "get" {
                self.siblings.observe(f64::from(siblings));
            }
            if hinted > 0 {
                self.hinted.inc_by(u64::from(hinted));
            }
        }
    }
}
