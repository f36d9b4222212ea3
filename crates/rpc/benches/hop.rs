//! Benchmark of bare capnp-rpc between two processes over loopback. Its speed is an upper bound for
//! one hop of a request in Quorate. Of Quorate, it uses only the schema.
//!
//! `cargo bench -p quorate-rpc --bench hop` prints one JSON object with two numbers. The first is
//! the median round trip of a call with one put, one call at a time. The second is the puts per
//! second on one connection, with 32 puts in a call and two calls under way.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use quorate_rpc::generated::client_capnp::node;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

const VALUE: [u8; 100] = [7; 100];
const BATCH: u32 = 32;
const CALLS_UNDER_WAY: usize = 2;
const MEASURED: Duration = Duration::from_secs(3);

fn main() {
    // Cargo passes flags of its own, which are ignored.
    let serving = std::env::args().any(|argument| argument == "serve");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("the event loop starts");
    runtime.block_on(async { if serving { serve().await } else { measure().await } });
}

struct Acks;

impl node::Server for Acks {
    async fn exchange(
        self: Rc<Self>,
        params: node::ExchangeParams,
        mut results: node::ExchangeResults,
    ) -> Result<(), capnp::Error> {
        let operations = params.get()?.get_operations()?;
        let mut out = results.get().init_results(operations.len());
        for (at, operation) in operations.iter().enumerate() {
            let mut result = out.reborrow().get(at as u32);
            result.set_id(operation.get_id());
            result.set_done(());
        }
        Ok(())
    }
}

fn network(stream: TcpStream, side: Side) -> Box<twoparty::VatNetwork<impl futures::io::AsyncRead + Unpin>> {
    stream.set_nodelay(true).expect("the socket is open");
    let (read, write) = stream.into_split();
    let read = futures::io::BufReader::with_capacity(64 * 1024, read.compat());
    let write = futures::io::BufWriter::with_capacity(64 * 1024, write.compat_write());
    Box::new(twoparty::VatNetwork::new(read, write, side, Default::default()))
}

async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("the listener is bound"));
    let (stream, _) = listener.accept().await.expect("the measuring side connects");
    let acks: node::Client = capnp_rpc::new_client(Acks);
    let _ = RpcSystem::new(network(stream, Side::Server), Some(acks.client)).await;
}

async fn measure() {
    let program = std::env::current_exe().expect("this program has a path");
    let mut server = Command::new(program)
        .arg("serve")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the serving process starts");
    let mut address = String::new();
    BufReader::new(server.stdout.take().expect("piped"))
        .read_line(&mut address)
        .expect("the serving process prints its address");
    let stream = TcpStream::connect(address.trim()).await.expect("the serving process listens");
    let mut system = RpcSystem::new(network(stream, Side::Client), None);
    let port: node::Client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);

    call(&port, 1).await;
    let mut trips = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < MEASURED {
        let sent = Instant::now();
        call(&port, 1).await;
        trips.push(sent.elapsed().as_nanos() as u64);
    }
    trips.sort_unstable();

    let begun = Instant::now();
    let senders = (0..CALLS_UNDER_WAY).map(|_| async {
        let mut done = 0_u64;
        while begun.elapsed() < MEASURED {
            call(&port, BATCH).await;
            done += u64::from(BATCH);
        }
        done
    });
    let done: u64 = futures::future::join_all(senders).await.into_iter().sum();
    let per_second = done as f64 / begun.elapsed().as_secs_f64();
    let median_us = trips[trips.len() / 2] as f64 / 1000.0;
    println!("{{\"round_trip_p50_us\": {median_us:.1}, \"ops_per_s_in_batches_of_32\": {per_second:.0}}}");
    let _ = std::io::stdout().flush();
    let _ = server.kill();
    let _ = server.wait();
}

async fn call(port: &node::Client, operations: u32) {
    let mut request = port.exchange_request();
    let mut list = request.get().init_operations(operations);
    for at in 0..operations {
        let mut operation = list.reborrow().get(at);
        operation.set_id(u64::from(at));
        operation.set_timeout_ms(1_000);
        operation.set_bucket("bench");
        operation.set_key(b"key0000000001");
        let mut put = operation.init_put();
        put.set_value(&VALUE);
        put.set_request_id(u64::from(at));
    }
    let answer = request.send().promise.await.expect("the other side answers");
    let results = answer.get().and_then(|answer| answer.get_results()).expect("with results");
    assert_eq!(results.len(), operations);
}
