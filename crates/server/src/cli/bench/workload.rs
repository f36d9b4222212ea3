//! The stream of operations and keys: a function of the seed.

use clap::ValueEnum;
use quorate_core::{Key, RequestError};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution as _, Zipf};
use xxhash_rust::xxh3::xxh3_64;

/// Mix of reads and overwrites. A, B and C are core workloads of the benchmark YCSB (Cooper et al.,
/// SoCC 2010).
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Workload {
    /// Overwrites only.
    Put,
    /// Reads only.
    Get,
    /// Half reads, half overwrites ("update heavy").
    A,
    /// 95 % reads, 5 % overwrites ("read mostly").
    B,
    /// Reads only, zipfian ("read only").
    C,
}

/// Frequency of each key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Distribution {
    /// Every key is used equally often.
    Uniform,
    /// A few keys are used by most operations, as in YCSB. These keys are spread over the ring.
    Zipfian,
}

impl Workload {
    fn reads_in_100(self) -> u32 {
        match self {
            Workload::Put => 0,
            Workload::A => 50,
            Workload::B => 95,
            Workload::Get | Workload::C => 100,
        }
    }

    /// Returns true if the workload contains reads. Its keys must then exist before the run begins.
    pub(super) fn reads(self) -> bool {
        self != Workload::Put
    }

    /// Returns the default distribution of keys. For a, b and c it is the one that YCSB defines,
    /// for `put` and `get` it is uniform.
    pub(super) fn default_distribution(self) -> Distribution {
        match self {
            Workload::Put | Workload::Get => Distribution::Uniform,
            Workload::A | Workload::B | Workload::C => Distribution::Zipfian,
        }
    }

    /// Returns the name that `--workload` takes.
    pub(super) fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::A => "a",
            Workload::B => "b",
            Workload::C => "c",
        }
    }
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Get(u32),
    Put(u32),
}

/// Skew of the zipfian distribution: YCSB's constant.
const ZIPFIAN_EXPONENT: f64 = 0.99;

/// An endless stream of operations.
pub(super) struct Operations {
    workload: Workload,
    keys: u32,
    zipf: Option<Zipf<f64>>,
    random: SmallRng,
}

impl Operations {
    /// Creates a stream of operations. `keys` is the number of keys, at least 1.
    pub(super) fn new(workload: Workload, distribution: Distribution, keys: u32, seed: u64) -> Operations {
        let zipf = (distribution == Distribution::Zipfian).then(|| {
            Zipf::new(f64::from(keys), ZIPFIAN_EXPONENT).expect("one key or more, a positive exponent")
        });
        Operations { workload, keys, zipf, random: SmallRng::seed_from_u64(seed) }
    }

    pub(super) fn next(&mut self) -> Operation {
        let key = match &self.zipf {
            None => self.random.random_range(0..self.keys),
            // The sample is a rank of popularity. A hash turns it into a key number, so that
            // popular keys are not neighbours.
            Some(zipf) => {
                let rank = zipf.sample(&mut self.random) as u64;
                (xxh3_64(&rank.to_le_bytes()) % u64::from(self.keys)) as u32
            }
        };
        if self.random.random_range(0..100) < self.workload.reads_in_100() {
            Operation::Get(key)
        } else {
            Operation::Put(key)
        }
    }
}

/// Returns the key with number `number`.
///
/// # Errors
/// `InvalidRequest` if the bucket's name is invalid.
pub(super) fn key(bucket: &str, number: u32) -> Result<Key, RequestError> {
    Key::new(bucket.as_bytes(), format!("key{number:010}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{Distribution, Operation, Operations, Workload};

    fn draw(workload: Workload, distribution: Distribution, count: usize) -> Vec<Operation> {
        let mut operations = Operations::new(workload, distribution, 1_000, 7);
        (0..count).map(|_| operations.next()).collect()
    }

    fn key_of(operation: &Operation) -> u32 {
        match operation {
            Operation::Get(key) | Operation::Put(key) => *key,
        }
    }

    /// The share of reads in a stream is the one that the workload defines.
    #[test]
    fn mixes_are_those_of_the_workload() {
        for (workload, expected) in
            [(Workload::Put, 0), (Workload::A, 500), (Workload::B, 950), (Workload::C, 1_000)]
        {
            let drawn = draw(workload, Distribution::Uniform, 10_000);
            let reads = drawn.iter().filter(|operation| matches!(operation, Operation::Get(_))).count();
            assert!((reads / 10).abs_diff(expected) <= 20, "{workload:?}: {reads}");
        }
    }

    /// Zipfian keys are skewed as YCSB's, uniform ones are not, and both stay within the key count.
    #[test]
    fn zipfian_is_skewed_and_uniform_is_not() {
        let most_popular = |distribution| {
            let mut counts = vec![0u32; 1_000];
            for operation in draw(Workload::Get, distribution, 100_000) {
                counts[key_of(&operation) as usize] += 1;
            }
            counts.into_iter().max().unwrap()
        };
        // Rank 1 has a share of 1 / H(1000, 0.99) = 12.9 %. The hash may map other ranks to the
        // same key.
        let zipfian = most_popular(Distribution::Zipfian);
        assert!((12_000..25_000).contains(&zipfian), "{zipfian}");
        let uniform = most_popular(Distribution::Uniform);
        assert!(uniform < 200, "{uniform}");
    }

    /// The same seed gives the same stream.
    #[test]
    fn streams_repeat_by_seed() {
        let again = draw(Workload::A, Distribution::Zipfian, 1_000);
        assert_eq!(draw(Workload::A, Distribution::Zipfian, 1_000), again);
    }
}
