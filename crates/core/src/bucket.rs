//! What a bucket's keys are held to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::RequestError;
use crate::key::BucketName;
use crate::request::QuorumSize;

/// When a read pushes what it merged to replicas that were behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadRepair {
    /// R replicas hold the merged object before the client is answered: quorum reads never go back.
    #[default]
    Blocking,
    /// The client is answered at once, the push goes on behind it.
    Background,
    /// Nothing is pushed.
    Off,
}

/// The rules of one bucket: `[buckets.NAME]` in the configuration. All nodes of a cluster must have the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketDefinition {
    /// Replicas a key. At most the cluster's `replicas`. Default: as many as those (3).
    pub n: Option<u8>,
    /// Replicas a read asks: a number, "quorum" or "all". Default "quorum".
    pub r: QuorumSize,
    /// Acks a write waits for: a number, "quorum" or "all". Default "quorum".
    pub w: QuorumSize,
    /// The conflict resolver plugin. Default "siblings".
    pub resolver: String,
    /// Whether fallbacks may stand in for dead replicas. Default true.
    pub sloppy: bool,
    /// When reads repair. Default "blocking".
    pub read_repair: ReadRepair,
    /// How many versions may lie side by side before puts with the empty context are refused. Default 100.
    pub max_siblings: u32,
    /// Largest value in bytes; at most 16 MiB. Default 1 MiB.
    pub max_value_bytes: u32,
}

impl Default for BucketDefinition {
    fn default() -> Self {
        BucketDefinition {
            n: None,
            r: QuorumSize::Majority,
            w: QuorumSize::Majority,
            resolver: "siblings".to_owned(),
            sloppy: true,
            read_repair: ReadRepair::Blocking,
            max_siblings: 100,
            max_value_bytes: 1024 * 1024,
        }
    }
}

/// A definition with its numbers worked out for the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Replicas a key: at most as many as a layout has. 255 where the definition leaves it to the layout.
    pub n: u8,
    /// The definition itself.
    pub definition: BucketDefinition,
}

impl Bucket {
    /// How many replicas a request needs of `n`: its own wish, or the bucket's. Never clamped.
    ///
    /// # Errors
    /// `InvalidRequest` if that is none, or more than there are.
    pub fn required(
        &self,
        wish: QuorumSize,
        default: QuorumSize,
        name: &str,
        n: u8,
    ) -> Result<u8, RequestError> {
        let size = if wish == QuorumSize::Default { default } else { wish };
        let required = size.of(n);
        if required == 0 || required > n {
            return Err(RequestError::invalid(format!(
                "{name}={required}: a key of this bucket has n={n} replicas; use 1 to {n}, \"quorum\" or \"all\"",
            )));
        }
        Ok(required)
    }
}

/// All buckets of a cluster. A name that is not declared takes the definition of `default`.
#[derive(Clone, Debug)]
pub struct Buckets {
    declared: BTreeMap<String, Arc<Bucket>>,
    default: Arc<Bucket>,
}

impl Buckets {
    /// Checks the definitions against the cluster's number of replicas.
    ///
    /// # Errors
    /// What is wrong and with which bucket.
    pub fn new(definitions: &BTreeMap<String, BucketDefinition>, replicas: u8) -> Result<Buckets, String> {
        let mut declared = BTreeMap::new();
        for (name, definition) in definitions {
            BucketName::new(name).map_err(|error| error.to_string())?;
            declared.insert(name.clone(), Arc::new(check(name, definition, replicas)?));
        }
        let default = match declared.get("default") {
            Some(bucket) => bucket.clone(),
            None => Arc::new(check("default", &BucketDefinition::default(), replicas)?),
        };
        Ok(Buckets { declared, default })
    }

    /// The rules of the bucket with this name.
    pub fn get(&self, name: &str) -> &Arc<Bucket> {
        if self.declared.is_empty() {
            return &self.default;
        }
        self.declared.get(name).unwrap_or(&self.default)
    }

    /// The declared buckets by name, and the default.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bucket)> {
        let default = (!self.declared.contains_key("default")).then_some(("default", &*self.default));
        self.declared.iter().map(|(name, bucket)| (name.as_str(), &**bucket)).chain(default)
    }

    /// A hash of all definitions, which nodes compare when they meet.
    pub fn digest(&self) -> u64 {
        let text: String = self.iter().map(|(name, bucket)| format!("{name}={bucket:?};")).collect();
        xxh3_64(text.as_bytes())
    }
}

fn check(name: &str, definition: &BucketDefinition, replicas: u8) -> Result<Bucket, String> {
    let n = definition.n.unwrap_or(replicas);
    if n == 0 || n > replicas {
        return Err(format!(
            "[buckets.{name}] n = {n}: the cluster keeps {replicas} replicas of a partition ([cluster] replicas); use 1 to {replicas}"
        ));
    }
    let limit = crate::key::MAX_VALUE_BYTES as u32;
    if definition.max_value_bytes == 0 || definition.max_value_bytes > limit {
        return Err(format!(
            "[buckets.{name}] max_value_bytes = {}: use 1 to {limit}",
            definition.max_value_bytes
        ));
    }
    if definition.max_siblings == 0 {
        return Err(format!("[buckets.{name}] max_siblings = 0: use 1 or more"));
    }
    let bucket = Bucket { n: definition.n.unwrap_or(u8::MAX), definition: definition.clone() };
    for (size, field) in [(definition.r, "r"), (definition.w, "w")] {
        bucket
            .required(QuorumSize::Default, size, field, n)
            .map_err(|error| format!("[buckets.{name}] {error}"))?;
    }
    Ok(bucket)
}
