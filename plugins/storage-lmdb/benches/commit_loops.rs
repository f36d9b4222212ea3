//! Measures an upper bound of the rate of durable writes without a write-ahead log. It runs several
//! loops that only commit to LMDB, at the same time.
//!
//! Each loop has its own file on one disk, as the three replicas of a cluster on one machine have.
//!
//! Run it with `cargo bench -p quorate-storage-lmdb --bench commit_loops [-- FOLDER]`. It prints a
//! JSON object for each batch size: the puts a second of the slowest of three loops. A cluster
//! without a log cannot be faster, because it commits every put three times.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lmdb::{DatabaseFlags, Environment, EnvironmentFlags, Transaction, WriteFlags};
use tokio::time::Instant;

const LOOPS: usize = 3;
const BATCHES: [usize; 3] = [64, 256, 512];
const KEYS: u64 = 100_000;
const VALUE: [u8; 100] = [7; 100];
const MEASURED: Duration = Duration::from_secs(3);

fn main() {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    for batch in BATCHES {
        let folders: Vec<_> =
            (0..LOOPS).map(|_| tempfile::tempdir_in(&folder).expect("the folder can be written")).collect();
        let loops: Vec<_> = folders
            .iter()
            .enumerate()
            .map(|(seed, folder)| {
                let folder = folder.path().to_owned();
                std::thread::spawn(move || puts_per_second(&folder, batch, seed as u64))
            })
            .collect();
        let rates = loops.into_iter().map(|one| one.join().expect("a loop does not panic"));
        let slowest = rates.fold(f64::INFINITY, f64::min);
        println!("{{\"batch\": {batch}, \"loops\": {LOOPS}, \"puts_per_s_each\": {slowest:.0}}}");
    }
}

fn puts_per_second(folder: &Path, batch: usize, seed: u64) -> f64 {
    let environment = Environment::new()
        .set_flags(EnvironmentFlags::NO_TLS | EnvironmentFlags::NO_READAHEAD)
        .set_map_size(4 << 30)
        .open(folder)
        .expect("the folder can be opened");
    let database = environment.create_db(None, DatabaseFlags::empty()).expect("the tree can be opened");
    let mut random = seed + 1;
    let begun = Instant::now();
    let mut done = 0_u64;
    while begun.elapsed() < MEASURED {
        let mut transaction = environment.begin_rw_txn().expect("a transaction can begin");
        for _ in 0..batch {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = format!("d\0\0bench\0key{:010}", (random >> 33) % KEYS);
            transaction.put(database, &key, &VALUE, WriteFlags::empty()).expect("the map has space");
        }
        transaction.commit().expect("the disk can be written");
        done += batch as u64;
    }
    done as f64 / begun.elapsed().as_secs_f64()
}
