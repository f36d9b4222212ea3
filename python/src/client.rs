//! The client for bytes, as Python sees it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use quorate_client::core::change::LayoutChange;
use quorate_client::core::key::BucketName;
use quorate_client::core::quorum::QuorumSize;
use quorate_client::core::request::{ClusterRequest, GetReply, PutReply, ScanEntry, Sibling, scan_cursor};
use quorate_client::core::{BucketDefinition, Key, Payload, RequestError, StorageKey};
use quorate_client::{ClientConfig, ClientError, EncodedWriteMode, ReadOptions, ScanOptions, WriteOptions};

use crate::call::Handle;
use crate::error::{instance, raise};

/// Operations of one `*_many` call under way at a time.
const MANY_IN_FLIGHT: usize = 512;

/// A client for bytes. Shared by threads: each has connections of its own.
#[pyclass(module = "quorate._native", frozen)]
pub(crate) struct Client {
    handle: Handle,
}

/// Siblings in stamp order, and what was seen.
type Got<'py> = (Vec<Bound<'py, PyBytes>>, Bound<'py, PyBytes>);
/// Key, siblings, context, and the cursor after it.
type Scanned<'py> = (Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);
/// Context, acks, hinted, conflict.
type Written<'py> = (Bound<'py, PyBytes>, usize, u8, bool);

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (url, timeout, follow))]
    fn new(py: Python<'_>, url: &str, timeout: f64, follow: bool) -> PyResult<Client> {
        let mut config = ClientConfig::new(url).map_err(|error| raise(py, &error))?;
        config.timeout = duration(timeout);
        config.follow = follow;
        let client = Client { handle: Handle::new(config) };
        client.handle.call(py, |_| async { Ok(()) })?;
        Ok(client)
    }

    #[pyo3(signature = (bucket, key, r, timeout))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        key: &[u8],
        r: Option<&str>,
        timeout: Option<f64>,
    ) -> PyResult<Got<'py>> {
        let key = named(py, bucket, key)?;
        let options = ReadOptions { r: quorum(py, "r", r)?, timeout: timeout.map(duration) };
        let reply = self.handle.call(py, |client| async move { client.get(&key, &options).await })?;
        Ok(got(py, &reply))
    }

    /// `value` None deletes. `exact`: replace what `context` contains and no more; otherwise overwrite, having seen it.
    #[pyo3(signature = (bucket, key, value, context, exact, w, sloppy, timeout))]
    #[allow(clippy::too_many_arguments)]
    fn put<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        key: &[u8],
        value: Option<&[u8]>,
        context: &[u8],
        exact: bool,
        w: Option<&str>,
        sloppy: Option<bool>,
        timeout: Option<f64>,
    ) -> PyResult<Written<'py>> {
        let key = named(py, bucket, key)?;
        let options = WriteOptions { w: quorum(py, "w", w)?, sloppy, timeout: timeout.map(duration) };
        let (payload, mode) = (payload(value), write_mode(context, exact));
        let reply =
            self.handle.call(py, |client| async move { client.put(&key, payload, mode, &options).await })?;
        Ok(written(py, &reply))
    }

    /// One result or exception a key, in order.
    #[pyo3(signature = (bucket, keys, r, timeout))]
    fn get_many<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        keys: Vec<Bound<'py, PyBytes>>,
        r: Option<&str>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let options = ReadOptions { r: quorum(py, "r", r)?, timeout: timeout.map(duration) };
        let keys =
            keys.iter().map(|key| named(py, bucket, key.as_bytes())).collect::<PyResult<Vec<Key>>>()?;
        let replies = self.handle.call(py, |client| async move {
            let gets = keys.iter().map(|key| client.get(key, &options));
            Ok(futures::stream::iter(gets).buffered(MANY_IN_FLIGHT).collect::<Vec<_>>().await)
        })?;
        let results = PyList::empty(py);
        for reply in replies {
            match reply {
                Ok(reply) => results.append(got(py, &reply))?,
                Err(error) => results.append(instance(py, &error)?)?,
            }
        }
        Ok(results)
    }

    /// `items`: key, value (None deletes), context, exact. One result or exception an item, in order.
    #[pyo3(signature = (bucket, items, w, sloppy, timeout))]
    #[allow(clippy::type_complexity)]
    fn put_many<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        items: Vec<(Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>, Bound<'py, PyBytes>, bool)>,
        w: Option<&str>,
        sloppy: Option<bool>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let options = WriteOptions { w: quorum(py, "w", w)?, sloppy, timeout: timeout.map(duration) };
        let mut writes = Vec::with_capacity(items.len());
        for (key, value, context, exact) in items {
            let value = value.as_ref().map(|value| value.as_bytes());
            let key = named(py, bucket, key.as_bytes())?;
            writes.push((key, payload(value), write_mode(context.as_bytes(), exact)));
        }
        let replies = self.handle.call(py, |client| async move {
            let puts = writes.into_iter().map(|(key, payload, mode)| {
                let client = client.clone();
                async move { client.put(&key, payload, mode, &options).await }
            });
            Ok(futures::stream::iter(puts).buffered(MANY_IN_FLIGHT).collect::<Vec<_>>().await)
        })?;
        let results = PyList::empty(py);
        for reply in replies {
            match reply {
                Ok(reply) => results.append(written(py, &reply))?,
                Err(error) => results.append(instance(py, &error)?)?,
            }
        }
        Ok(results)
    }

    /// Key, siblings, context and the cursor after it of each entry; and the cursor of the next page, empty at the end.
    #[pyo3(signature = (bucket, prefix, cursor, limit, keys_only, r, timeout))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn scan<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        prefix: &[u8],
        cursor: &[u8],
        limit: u32,
        keys_only: bool,
        r: Option<&str>,
        timeout: Option<f64>,
    ) -> PyResult<(Vec<Scanned<'py>>, Bound<'py, PyBytes>)> {
        let bucket = BucketName::new(bucket).map_err(|error| raise(py, &error.into()))?;
        let options = ScanOptions {
            prefix: Bytes::copy_from_slice(prefix),
            cursor: Bytes::copy_from_slice(cursor),
            limit,
            keys_only,
            read: ReadOptions { r: quorum(py, "r", r)?, timeout: timeout.map(duration) },
        };
        let name = bucket.as_str().to_owned();
        let page = self.handle.call(py, |client| async move { client.scan(&bucket, &options).await })?;
        let mut entries = Vec::with_capacity(page.entries.len());
        for ScanEntry { partition, key, siblings: values, context } in &page.entries {
            let place = StorageKey::of(*partition, &named(py, &name, key)?);
            let cursor = scan_cursor(*partition, place.as_bytes());
            let bytes = |bytes: &[u8]| PyBytes::new(py, bytes);
            entries.push((bytes(key), siblings(py, values), bytes(context), bytes(&cursor)));
        }
        Ok((entries, PyBytes::new(py, &page.cursor)))
    }

    /// A JSON document.
    #[pyo3(signature = (bucket, key))]
    fn explain(&self, py: Python<'_>, bucket: &str, key: &[u8]) -> PyResult<String> {
        let key = named(py, bucket, key)?;
        let explanation = self.handle.call(py, |client| async move { client.explain(&key).await })?;
        Ok(serde_json::to_string(&explanation).expect("plain data"))
    }

    /// A JSON document.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.handle.call(py, |client| async move { client.status().await })?;
        Ok(serde_json::to_string(&status).expect("plain data"))
    }

    /// Seconds of one round trip.
    fn ping(&self, py: Python<'_>) -> PyResult<f64> {
        let took = self.handle.call(py, |client| async move { client.ping().await })?;
        Ok(took.as_secs_f64())
    }

    /// Partition, replicas a key, records, digest of each partition in which the node holds anything.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<Vec<(u16, u8, u64, u64)>> {
        let partitions = self.handle.call(py, |client| async move { client.fingerprint().await })?;
        Ok(partitions.iter().map(|p| (p.partition.0, p.n, p.records, p.digest)).collect())
    }

    /// Asks about the cluster's layout, or changes it at once, whatever is staged: a JSON document. `verb`: "show", "drain", or
    /// a change: "join", "leave", "remove".
    #[pyo3(signature = (verb, name="", address="", zone="", number=0))]
    fn cluster(
        &self,
        py: Python<'_>,
        verb: &str,
        name: &str,
        address: &str,
        zone: &str,
        number: u16,
    ) -> PyResult<String> {
        let (name, address, zone) = (name.to_owned(), address.to_owned(), zone.to_owned());
        let request = match verb {
            "show" => Err(ClusterRequest::Show),
            "drain" => Err(ClusterRequest::Drain),
            "join" => Ok(LayoutChange::Join { name, address, zone, weight: number }),
            "leave" => Ok(LayoutChange::Leave { name }),
            "remove" => Ok(LayoutChange::Remove { name }),
            other => {
                let detail = format!("{other:?} is nothing that a cluster can be asked");
                return Err(raise(py, &ClientError::Request(RequestError::invalid(detail))));
            }
        };
        self.handle.call(py, |client| async move {
            let apply = |change| ClusterRequest::Apply(client.staged(change));
            client.cluster(request.map_or_else(|asked| asked, apply)).await
        })
    }

    /// Gives a bucket a definition of its own. `definition`: a JSON document.
    fn create_bucket(&self, py: Python<'_>, name: &str, definition: &str, timeout: f64) -> PyResult<()> {
        let invalid = |detail: String| raise(py, &ClientError::Request(RequestError::invalid(detail)));
        let definition: BucketDefinition =
            serde_json::from_str(definition).map_err(|error| invalid(format!("bucket {name:?}: {error}")))?;
        let (name, timeout) = (name.to_owned(), Duration::from_secs_f64(timeout));
        self.handle
            .call(py, |client| async move { client.create_bucket(&name, definition, timeout).await })
            .map(drop)
    }

    /// What buckets' keys are held to: a JSON document.
    fn buckets(&self, py: Python<'_>) -> PyResult<String> {
        let report = self.handle.call(py, |client| async move { client.buckets().await })?;
        Ok(serde_json::to_string(&report).expect("plain data"))
    }

    /// Cuts the node off from others, by name.
    #[pyo3(signature = (cut))]
    fn set_faults(&self, py: Python<'_>, cut: Vec<String>) -> PyResult<()> {
        self.handle.call(py, |client| async move { client.set_faults(cut).await })
    }

    fn close(&self) {
        self.handle.close();
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.000_001, 86_400.0))
}

fn named(py: Python<'_>, bucket: &str, key: &[u8]) -> PyResult<Key> {
    Key::new(bucket.as_bytes(), key).map_err(|error| raise(py, &error.into()))
}

fn quorum(py: Python<'_>, name: &str, size: Option<&str>) -> PyResult<QuorumSize> {
    match size.map(str::parse).transpose() {
        Ok(size) => Ok(size.unwrap_or_default()),
        Err(error) => Err(raise(py, &ClientError::Request(RequestError::invalid(format!("{name}={error}"))))),
    }
}

fn payload(value: Option<&[u8]>) -> Payload {
    value.map_or(Payload::Tombstone, |value| Payload::Value(Bytes::copy_from_slice(value)))
}

fn write_mode(context: &[u8], exact: bool) -> EncodedWriteMode {
    let context = Bytes::copy_from_slice(context);
    if exact { EncodedWriteMode::Exactly { context } } else { EncodedWriteMode::Overwrite { seen: context } }
}

fn siblings<'py>(py: Python<'py>, siblings: &[Sibling]) -> Vec<Bound<'py, PyBytes>> {
    siblings.iter().map(|sibling| PyBytes::new(py, &sibling.value)).collect()
}

fn got<'py>(py: Python<'py>, reply: &GetReply) -> Got<'py> {
    (siblings(py, &reply.siblings), PyBytes::new(py, &reply.context))
}

fn written<'py>(py: Python<'py>, reply: &PutReply) -> Written<'py> {
    (PyBytes::new(py, &reply.context), reply.receipt.acked.len(), reply.hinted, reply.conflict)
}
