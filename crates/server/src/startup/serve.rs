//! `quorate serve`: the sequence of a node's start and stop.

use std::net::TcpListener;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_client::system::System;
use quorate_core::layout_change::Layouts;
use quorate_core::membership::ClusterInit;
use quorate_core::plugin::PluginContext;
use quorate_core::storage::StorageEngine;
use quorate_node::{Parts, Shared, stored_layouts};
use tokio::runtime::Builder;

use super::acceptor::accept_until_stopped;
use super::cluster_init::discover_layout;
use super::data_folder::{FolderState, claim_folder, store_layouts};
use super::faults::PeerCuts;
use super::layout_checks::check_layouts;
use super::membership::{SharedMembership, lock};
use super::process::{abort_on_panic, disable_huge_pages};
use super::worker::{Worker, WorkerCounters, WorkerSetup};
use crate::config::{Config, ConfigError};
use crate::registry::Registry;
use crate::telemetry::{HttpPort, Metrics, StartedNode, start_logging};

/// Runs a node until SIGTERM or SIGINT.
pub(crate) fn serve(config: Config, registry: &Registry) -> Result<(), ConfigError> {
    start_logging(&config.node)?;
    abort_on_panic();
    disable_huge_pages();

    let listener = bind(&config)?;
    let metrics = Arc::new(Metrics::new());
    let started_node = StartedNode::default();
    let http = open_http_port(&config, &metrics, &started_node)?;

    let cuts = config.faults.enabled.then(Arc::<PeerCuts>::default);
    let Some(state) = StartupState::load(&config, registry, &listener, cuts.as_ref())? else {
        tracing::info!("stopped");
        return Ok(());
    };
    let seeds = state.seeds.clone();
    let shared = open_node(&config, registry, state, metrics.clone())?;
    let _ = started_node.set(Arc::downgrade(&shared));

    let counters = WorkerCounters {
        open_connections: Arc::new(AtomicUsize::new(0)),
        peer_queues: metrics.peer_queues(),
    };
    let workers = start_workers(&config, &shared, cuts, seeds, &counters);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ConfigError::new(format!("cannot start the event loop: {error}")))?;
    let served =
        runtime.block_on(accept_until_stopped(listener, &workers, &counters.open_connections, &config));
    drop(runtime);

    stop_workers(workers);
    // An HTTP request for metrics may still hold the node's state. Dropping the port ends that
    // request.
    drop(http);
    close_engine(shared);
    tracing::info!("stopped");
    served
}

fn bind(config: &Config) -> Result<TcpListener, ConfigError> {
    let address = config.node.listen;
    TcpListener::bind(address)
        .map_err(|error| ConfigError::new(format!("cannot listen on {address} ([node] listen): {error}")))
}

/// Opens the HTTP port, if the configuration has one.
fn open_http_port(
    config: &Config,
    metrics: &Arc<Metrics>,
    node: &StartedNode,
) -> Result<Option<HttpPort>, ConfigError> {
    let Some(address) = config.node.metrics else { return Ok(None) };
    let listener = HttpPort::bind(address)
        .map_err(|error| ConfigError::new(format!("cannot listen on {address} ([node] metrics): {error}")))?;
    let port = HttpPort::open(listener, metrics.clone(), node.clone())
        .map_err(|error| ConfigError::new(format!("cannot serve metrics: {error}")))?;
    Ok(Some(port))
}

/// State that a node loads before it serves.
struct StartupState {
    engine: Arc<dyn StorageEngine>,
    folder: FolderState,
    layouts: Layouts,
    membership: SharedMembership,
    seeds: Vec<String>,
}

impl StartupState {
    /// Opens the engine and the membership, and determines the layouts. Returns `None` if the
    /// process is told to stop meanwhile.
    fn load(
        config: &Config,
        registry: &Registry,
        listener: &TcpListener,
        cuts: Option<&Arc<PeerCuts>>,
    ) -> Result<Option<StartupState>, ConfigError> {
        let this = config.member();
        let context = PluginContext { data_folder: &config.node.data, this: &this };
        let engine = registry.open_storage(&config.storage.name, config.storage.rest.clone(), &context)?;
        let folder = claim_folder(&*engine, config)?;
        let plugin = &config.membership;
        let membership = registry.open_membership(&plugin.name, plugin.rest.clone(), &context)?;
        let cluster_init = membership.cluster_init();
        let membership = Arc::new(Mutex::new(membership));
        let seeds = cluster_init.as_ref().map_or(Vec::new(), |init| init.seeds.clone());

        let this = this.id;
        let layouts = match (stored_layouts(this, &*engine)?, &config.layout, &cluster_init) {
            (Some(stored), _, _) => stored,
            (None, Some(layout), _) => store_layouts(&*engine, Layouts::settled(this, layout.clone()))?,
            (None, None, Some(cluster_init)) => {
                let membership = membership.clone();
                match discover_layout(config, cluster_init, membership, listener, cuts)? {
                    Some(layouts) => store_layouts(&*engine, layouts)?,
                    None => return Ok(None),
                }
            }
            (None, None, None) => {
                return Err(ConfigError::new(
                    "[membership] plugin: this plugin provides neither members nor seeds; use a plugin that provides one of them",
                ));
            }
        };
        check_layouts(config, &layouts)?;
        join_layout_members(cluster_init.as_ref(), &membership, &layouts);
        Ok(Some(StartupState { engine, folder, layouts, membership, seeds }))
    }
}

/// Adds the layouts' members to a membership that finds its members while it runs.
fn join_layout_members(cluster_init: Option<&ClusterInit>, membership: &SharedMembership, layouts: &Layouts) {
    if cluster_init.is_none() {
        return;
    }
    let mut membership = lock(membership);
    for member in layouts.active().iter().flat_map(|layout| layout.members()) {
        // A membership plugin with a fixed list of members refuses to add one. The error is
        // ignored, because workers connect to the layouts' members in any case.
        let _ = membership.join(member.clone());
    }
}

/// Opens the state of the node that all workers share. Takes the startup state by value: the engine
/// closes when its last owner is dropped, and the node's state must be its only owner.
fn open_node(
    config: &Config,
    registry: &Registry,
    state: StartupState,
    metrics: Arc<Metrics>,
) -> Result<Arc<Shared>, ConfigError> {
    let StartupState { engine, folder, layouts, membership, seeds: _ } = state;
    let durability = match engine.capability().durable {
        true => "durable when acked",
        false if engine.capability().survives_restart => "committed at intervals",
        false => "volatile",
    };
    let this = config.member();
    let context = PluginContext { data_folder: &config.node.data, this: &this };
    let shared = Shared::new(Parts {
        identity: config.identity(layouts.root()),
        layouts,
        resolvers: registry.open_resolvers(&context)?,
        storage_name: format!("{} ({durability})", config.storage.name),
        engine,
        environment: Arc::new(System::new()),
        events: metrics,
        membership,
        settings: config.settings.clone(),
        is_empty: folder == FolderState::New,
    });
    Ok(shared?)
}

/// Starts the configured number of workers, by default one per CPU core. Only the first worker
/// dials the seeds.
fn start_workers(
    config: &Config,
    shared: &Arc<Shared>,
    cuts: Option<Arc<PeerCuts>>,
    seeds: Vec<String>,
    counters: &WorkerCounters,
) -> Vec<Worker> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let start = |number| {
        Worker::start(WorkerSetup {
            number,
            shared: shared.clone(),
            cuts: cuts.clone(),
            seeds: if number == 0 { seeds.clone() } else { Vec::new() },
            counters: counters.clone(),
        })
    };
    (0..config.node.workers.unwrap_or_else(cores)).map(start).collect()
}

/// Stops all workers. Tells all of them to stop, and only then waits for each, so that they finish
/// their requests at the same time.
fn stop_workers(workers: Vec<Worker>) {
    let threads: Vec<JoinHandle<()>> = workers.into_iter().map(Worker::stop).collect();
    for thread in threads {
        let _ = thread.join();
    }
}

/// Longest time that a stopping node waits for the engine's last commit. After it, the node stops
/// anyway.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for the last commit, and drops the node's state. Updates that are not committed yet also
/// own that state. After their commit, this function is the last owner. Dropping the engine then
/// commits the remaining changes, and leaves the data folder ready for the next start.
fn close_engine(shared: Arc<Shared>) {
    let deadline = LAST_COMMIT_TIMEOUT.as_millis() as u64 + shared.environment.monotonic_ms();
    shared.engine.flush();
    while Arc::strong_count(&shared) > 1 && shared.environment.monotonic_ms() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(shared);
}
