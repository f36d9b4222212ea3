//! Buckets: the n, quorums, conflict resolver and limits of their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::RequestError;
use crate::key::BucketName;
use crate::layout_error::LayoutError;
use crate::quorum::QuorumSize;
use crate::varint::{Reader, put_bytes, put_varint};

/// Name of the bucket that has the definition of all buckets without one of their own.
pub const DEFAULT_BUCKET: &str = "default";
/// Maximum number of buckets with a definition of their own.
pub const MAX_BUCKETS: usize = 4_096;
/// Longest name of a resolver, in bytes.
const MAX_RESOLVER_BYTES: usize = 64;

/// The time at which a read sends the merged object to replicas that hold less.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadRepair {
    /// Repair before the client is answered: R replicas then hold the merged object. A later quorum
    /// read cannot return older versions.
    #[default]
    Blocking,
    /// Repair after the client is answered.
    Background,
    /// No read repair.
    Off,
}

/// The definition of one bucket. The cluster keeps it with its layouts. At cluster init it comes
/// from `[buckets.NAME]` of the configuration; later, `quorate bucket create` adds more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketDefinition {
    /// Replicas of each key, at most the cluster's `replicas`. Default: the cluster's `replicas`
    /// (3).
    pub n: Option<u8>,
    /// Replies that a read waits for: a number, "quorum" or "all". Default "quorum".
    pub r: QuorumSize,
    /// Acks that a write waits for: a number, "quorum" or "all". Default "quorum".
    pub w: QuorumSize,
    /// The conflict resolver plugin. Default "siblings".
    pub resolver: String,
    /// True if a fallback's ack may count for a replica that cannot be reached. Default true.
    pub sloppy: bool,
    /// Time of read repair. Default "blocking".
    pub read_repair: ReadRepair,
    /// Maximum number of siblings. A put with the empty context is refused if the key has this
    /// many. Default 100.
    pub max_siblings: u32,
    /// Largest value, in bytes; at most 16 MiB. Default 1 MiB.
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

/// A definition that was checked against the cluster's number of replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Replicas of each key. The layout's N is the upper limit. 255 if the definition names none: N
    /// then applies.
    pub n: u8,
    /// The definition.
    pub definition: BucketDefinition,
}

impl Bucket {
    /// Returns the number of replicas, out of `n`, that must answer a request: `wish`, or the
    /// bucket's `default` if the request names no number. A number above `n` is an error, and is
    /// never reduced to `n`. `name` is "r" or "w", for the error.
    ///
    /// # Errors
    /// `InvalidRequest` if the number is 0 or larger than `n`.
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

impl Bucket {
    /// True if reads and writes under this definition and under `other` see each other, in a layout
    /// with N = `replicas`.
    ///
    /// They do if n is equal, r + w' > n and r' + w > n, where r' and w' are those of `other`.
    /// If n is equal, equal quorums (r = r' and w = w') always count too, because then nothing
    /// changes for reads and writes.
    pub fn meets(&self, other: &Bucket, replicas: u8) -> bool {
        let n = self.n.min(replicas);
        let sizes = |of: &Bucket| (u16::from(of.definition.r.of(n)), u16::from(of.definition.w.of(n)));
        let ((r, w), (their_r, their_w)) = (sizes(self), sizes(other));
        let meet = r + their_w > u16::from(n) && their_r + w > u16::from(n);
        self.n == other.n && (meet || (r, w) == (their_r, their_w))
    }
}

/// All buckets of a cluster. A bucket that is not declared has the definition of `default`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buckets {
    declared: BTreeMap<String, Arc<Bucket>>,
    default: Arc<Bucket>,
}

impl Default for Buckets {
    fn default() -> Self {
        let default = Arc::new(Bucket { n: u8::MAX, definition: BucketDefinition::default() });
        Buckets { declared: BTreeMap::new(), default }
    }
}

impl Buckets {
    /// Checks the definitions against the cluster's number of replicas.
    ///
    /// # Errors
    /// [`LayoutError::Bucket`], with the bucket's name, the value that is not allowed, and the
    /// remedy.
    pub fn new(
        definitions: &BTreeMap<String, BucketDefinition>,
        replicas: u8,
    ) -> Result<Buckets, LayoutError> {
        let mut buckets = Buckets::default();
        for (name, definition) in definitions {
            buckets.declared.insert(name.clone(), Arc::new(check(name, definition, replicas)?));
        }
        if definitions.len() > MAX_BUCKETS {
            let name = definitions.keys().next_back().cloned().unwrap_or_default();
            let detail = format!("{} definitions: use up to {MAX_BUCKETS}", definitions.len());
            return Err(LayoutError::Bucket { name, detail });
        }
        if let Some(default) = buckets.declared.get(DEFAULT_BUCKET) {
            buckets.default = default.clone();
        }
        Ok(buckets)
    }

    /// Returns the bucket with this name.
    pub fn get(&self, name: &str) -> &Arc<Bucket> {
        if self.declared.is_empty() {
            return &self.default;
        }
        self.declared.get(name).unwrap_or(&self.default)
    }

    /// True if the bucket has a definition of its own.
    pub fn is_declared(&self, name: &str) -> bool {
        self.declared.contains_key(name)
    }

    /// Returns the declared buckets, sorted by name, and `default`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bucket)> {
        let default = (!self.is_declared(DEFAULT_BUCKET)).then_some((DEFAULT_BUCKET, &*self.default));
        self.declared.iter().map(|(name, bucket)| (name.as_str(), &**bucket)).chain(default)
    }

    /// Returns the definitions by name.
    pub fn definitions(&self) -> BTreeMap<String, BucketDefinition> {
        self.declared.iter().map(|(name, bucket)| (name.clone(), bucket.definition.clone())).collect()
    }

    /// Returns the names of the buckets whose n differs between these definitions and `other`.
    pub fn with_other_n<'a>(&'a self, other: &'a Buckets) -> impl Iterator<Item = &'a str> {
        self.names_with(other).filter(|name| self.get(name).n != other.get(name).n)
    }

    /// Returns the names of buckets for which reads under these definitions may miss writes under
    /// `other`, or the reverse.
    pub fn that_miss<'a>(&'a self, other: &'a Buckets, replicas: u8) -> impl Iterator<Item = &'a str> {
        self.names_with(other).filter(move |name| !self.get(name).meets(other.get(name), replicas))
    }

    fn names_with<'a>(&'a self, other: &'a Buckets) -> impl Iterator<Item = &'a str> {
        let theirs = other.declared.keys().filter(|name| !self.is_declared(name));
        self.declared.keys().chain(theirs).map(String::as_str)
    }
}

impl BucketDefinition {
    /// Describes, for people, the fields of this definition that differ from `wanted`.
    pub(crate) fn differences(&self, wanted: &BucketDefinition) -> String {
        let n = |of: &BucketDefinition| of.n.map_or("that of the layout".to_owned(), |n| n.to_string());
        let repair = |of: &BucketDefinition| format!("{:?}", of.read_repair).to_lowercase();
        let fields = |of: &BucketDefinition| {
            [
                ("n", n(of)),
                ("r", of.r.to_string()),
                ("w", of.w.to_string()),
                ("resolver", of.resolver.clone()),
                ("sloppy", of.sloppy.to_string()),
                ("read_repair", repair(of)),
                ("max_siblings", of.max_siblings.to_string()),
                ("max_value_bytes", of.max_value_bytes.to_string()),
            ]
        };
        let both = fields(self).into_iter().zip(fields(wanted));
        let differ = both.filter(|((_, here), (_, there))| here != there);
        let words = differ.map(|((name, here), (_, there))| format!("{name} = {here}, not {there}"));
        words.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let BucketDefinition { n, r, w, resolver, sloppy, read_repair, max_siblings, max_value_bytes } = self;
        out.extend([u8::from(n.is_some()), n.unwrap_or(0)]);
        [r, w].iter().for_each(|size| put_size(out, **size));
        put_bytes(out, resolver.as_bytes());
        out.push(u8::from(*sloppy));
        out.push(match read_repair {
            ReadRepair::Blocking => 0,
            ReadRepair::Background => 1,
            ReadRepair::Off => 2,
        });
        put_varint(out, u64::from(*max_siblings));
        put_varint(out, u64::from(*max_value_bytes));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<BucketDefinition, LayoutError> {
        let n = match reader.take(2)? {
            [0, 0] => None,
            [1, n] => Some(*n),
            _ => return Err(LayoutError::Malformed),
        };
        let (r, w) = (read_size(reader)?, read_size(reader)?);
        let resolver = reader.text()?.to_owned();
        let sloppy = match reader.byte()? {
            flag @ 0..=1 => flag == 1,
            _ => return Err(LayoutError::Malformed),
        };
        let read_repair = match reader.byte()? {
            0 => ReadRepair::Blocking,
            1 => ReadRepair::Background,
            2 => ReadRepair::Off,
            _ => return Err(LayoutError::Malformed),
        };
        let mut number = || u32::try_from(reader.varint()?).map_err(|_| LayoutError::Malformed);
        let (max_siblings, max_value_bytes) = (number()?, number()?);
        Ok(BucketDefinition { n, r, w, resolver, sloppy, read_repair, max_siblings, max_value_bytes })
    }
}

fn put_size(out: &mut Vec<u8>, size: QuorumSize) {
    let (kind, count) = match size {
        QuorumSize::Majority | QuorumSize::Default => (0, 0),
        QuorumSize::All => (1, 0),
        QuorumSize::Count(count) => (2, count),
    };
    out.extend([kind, count]);
}

fn read_size(reader: &mut Reader<'_>) -> Result<QuorumSize, LayoutError> {
    let pair = reader.take(2).map_err(|_| LayoutError::Malformed)?;
    match pair {
        [0, 0] => Ok(QuorumSize::Majority),
        [1, 0] => Ok(QuorumSize::All),
        [2, count] => Ok(QuorumSize::Count(*count)),
        _ => Err(LayoutError::Malformed),
    }
}

/// Checks a definition against the cluster's number of replicas.
///
/// # Errors
/// [`LayoutError::Bucket`], with the value that is not allowed, and the remedy.
pub(crate) fn check(name: &str, definition: &BucketDefinition, replicas: u8) -> Result<Bucket, LayoutError> {
    numbers_of(name, definition, replicas)
        .map_err(|detail| LayoutError::Bucket { name: name.to_owned(), detail })
}

fn numbers_of(name: &str, definition: &BucketDefinition, replicas: u8) -> Result<Bucket, String> {
    BucketName::new(name).map_err(|error| error.to_string())?;
    let n = definition.n.unwrap_or(replicas);
    if replicas == 0 {
        return Err("the cluster has replicas = 0: use 1 or more".to_owned());
    }
    if n == 0 || n > replicas {
        return Err(format!(
            "n = {n}: the cluster keeps {replicas} replicas of a partition; use 1 to {replicas}, or more replicas \
             (before the cluster begins: [cluster] replicas; later: quorate cluster replicas)"
        ));
    }
    let limit = crate::key::MAX_VALUE_BYTES as u32;
    if definition.max_value_bytes == 0 || definition.max_value_bytes > limit {
        return Err(format!("max_value_bytes = {}: use 1 to {limit}", definition.max_value_bytes));
    }
    if definition.max_siblings == 0 {
        return Err("max_siblings = 0: use 1 or more".to_owned());
    }
    let resolver = &definition.resolver;
    if resolver.is_empty() || resolver.len() > MAX_RESOLVER_BYTES {
        return Err(format!("resolver = {resolver:?}: use a name of 1 to {MAX_RESOLVER_BYTES} bytes"));
    }
    let bucket = Bucket { n: definition.n.unwrap_or(u8::MAX), definition: definition.clone() };
    for (size, field) in [(definition.r, "r"), (definition.w, "w")] {
        let required = bucket.required(QuorumSize::Default, size, field, n);
        required.map_err(|error| match error {
            RequestError::InvalidRequest { detail } => detail,
            other => other.to_string(),
        })?;
    }
    Ok(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoded definition equals the encoded one. Truncated bytes are refused.
    #[test]
    fn definitions_round_trip() {
        let odd = BucketDefinition {
            n: Some(2),
            r: QuorumSize::Count(1),
            w: QuorumSize::All,
            resolver: "lww".into(),
            sloppy: false,
            read_repair: ReadRepair::Background,
            max_siblings: 7,
            max_value_bytes: 99,
        };
        for definition in [BucketDefinition::default(), odd] {
            let mut bytes = Vec::new();
            definition.encode(&mut bytes);
            assert_eq!(BucketDefinition::decode(&mut Reader::new(&bytes)), Ok(definition));
            for end in 0..bytes.len() {
                assert!(BucketDefinition::decode(&mut Reader::new(&bytes[..end])).is_err());
            }
        }
    }

    /// A value outside of its limits is refused, with the bucket's name, the field and the value.
    #[test]
    fn values_that_do_not_fit_are_named() {
        let plain = BucketDefinition::default;
        let wrong = [
            (BucketDefinition { n: Some(4), ..plain() }, "n = 4"),
            (BucketDefinition { n: Some(2), w: QuorumSize::Count(3), ..plain() }, "w=3"),
            (BucketDefinition { max_siblings: 0, ..plain() }, "max_siblings = 0"),
            (BucketDefinition { max_value_bytes: 0, ..plain() }, "max_value_bytes = 0"),
            (BucketDefinition { resolver: String::new(), ..plain() }, "resolver = \"\""),
        ];
        for (definition, what) in wrong {
            let definitions = BTreeMap::from([("carts".to_owned(), definition)]);
            let refusal = Buckets::new(&definitions, 3).unwrap_err().to_string();
            assert!(refusal.contains("\"carts\"") && refusal.contains(what), "{refusal}");
        }
    }
}
