//! The Python class `quorate._native.Client`: a client whose keys and values are bytes.

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

/// Largest number of operations that one `*_many` call has in progress at a time.
const MANY_IN_FLIGHT: usize = 512;

/// A client whose keys and values are bytes. Threads may share it: each thread has its own
/// connections.
#[pyclass(module = "quorate._native", frozen)]
pub(crate) struct Client {
    handle: Handle,
}

/// Result of a read: values of the siblings in stamp order, and the context.
type Got<'py> = (Vec<Bound<'py, PyBytes>>, Bound<'py, PyBytes>);
/// Entry of a scan: key, siblings, context, and the cursor after this entry.
type Scanned<'py> = (Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);
/// Result of a write: context, number of acknowledgements, number of those that came from
/// fallbacks, and true if the key has siblings that this client has not seen.
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

    /// Writes a value, or deletes the key if `value` is None.
    ///
    /// With `exact`, the write replaces exactly the versions in `context`. Otherwise it replaces
    /// all versions that its coordinator holds, and those in `context`, which the client last saw.
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

    /// Reads many keys. Returns one result or exception for each key, in the order of `keys`.
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

    /// Writes many keys. An item is a key, a value (None deletes the key), a context and `exact`,
    /// as for `put`. Returns one result or exception for each item, in the order of `items`.
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

    /// Reads one page of a bucket. Returns its entries and the cursor of the next page. The cursor
    /// is empty after the last page. With a `limit` of 0, returns as many entries as fit into a
    /// page.
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

    /// Returns the placement of a key and the versions that each replica holds, as JSON.
    #[pyo3(signature = (bucket, key))]
    fn explain(&self, py: Python<'_>, bucket: &str, key: &[u8]) -> PyResult<String> {
        let key = named(py, bucket, key)?;
        let explanation = self.handle.call(py, |client| async move { client.explain(&key).await })?;
        Ok(serde_json::to_string(&explanation).expect("plain data"))
    }

    /// Returns a node's view of the cluster, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.handle.call(py, |client| async move { client.status().await })?;
        Ok(serde_json::to_string(&status).expect("plain data"))
    }

    /// Measures one round trip to a node, in seconds.
    fn ping(&self, py: Python<'_>) -> PyResult<f64> {
        let took = self.handle.call(py, |client| async move { client.ping().await })?;
        Ok(took.as_secs_f64())
    }

    /// Returns the fingerprints of the records that the connected node holds, one tuple for each
    /// partition and n: partition number, n, number of records, digest.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<Vec<(u16, u8, u64, u64)>> {
        let partitions = self.handle.call(py, |client| async move { client.fingerprint().await })?;
        Ok(partitions.iter().map(|p| (p.partition.0, p.n, p.records, p.digest)).collect())
    }

    /// Asks one node to show or change the cluster's layout, or to drain itself. Returns the node's
    /// answer as JSON.
    ///
    /// `verb` is "show", "drain", "join", "leave" or "remove". The last three change the layout at
    /// once and ignore staged changes.
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
                let detail = format!("verb {other:?}: use show, drain, join, leave or remove");
                return Err(raise(py, &ClientError::Request(RequestError::invalid(detail))));
            }
        };
        self.handle.call(py, |client| async move {
            let apply = |change| ClusterRequest::Apply(client.staged(change));
            client.cluster(request.map_or_else(|asked| asked, apply)).await
        })
    }

    /// Creates a bucket with a definition of its own, given as JSON, and waits until all nodes use
    /// the definition.
    fn create_bucket(&self, py: Python<'_>, name: &str, definition: &str, timeout: f64) -> PyResult<()> {
        let invalid = |detail: String| raise(py, &ClientError::Request(RequestError::invalid(detail)));
        let definition: BucketDefinition =
            serde_json::from_str(definition).map_err(|error| invalid(format!("bucket {name:?}: {error}")))?;
        let (name, timeout) = (name.to_owned(), Duration::from_secs_f64(timeout));
        self.handle
            .call(py, |client| async move { client.create_bucket(&name, definition, timeout).await })
            .map(drop)
    }

    /// Returns the definitions of the buckets, as JSON.
    fn buckets(&self, py: Python<'_>) -> PyResult<String> {
        let report = self.handle.call(py, |client| async move { client.buckets().await })?;
        Ok(serde_json::to_string(&report).expect("plain data"))
    }

    /// Cuts the connected node off from the named nodes, and ends its earlier cuts. With a ">"
    /// before a name, only messages to that node are lost.
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
