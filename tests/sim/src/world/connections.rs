//! Connections of clients to nodes: one for each pair of client and node. The pair's first request
//! opens it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::request::{ClientRequest, ClientResult};
use quorate_core::seams::ReplyTo;
use quorate_rpc::batch_sender::BatchSender;
use quorate_rpc::network::Network;
use quorate_rpc::preamble::introduce;
use quorate_rpc::{ClientAnswer, ClientProtocol};
use tokio::sync::oneshot;

use super::network::{FIRST_CLIENT, HostNetwork, Net};

/// The open connections.
#[derive(Default)]
pub(super) struct Connections(RefCell<BTreeMap<Ends, Connection>>);

type Connection = Rc<BatchSender<ClientProtocol>>;

/// The client and the node that a connection joins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Ends {
    pub(super) client: usize,
    pub(super) node: usize,
}

impl Connections {
    /// Sends a request to the node at `address`, and waits for the reply. `None`: the client cannot
    /// connect, or the connection was lost.
    pub(super) async fn exchange(
        &self,
        net: &Net,
        ends: Ends,
        address: &str,
        request: ClientRequest,
        timeout: Duration,
    ) -> Option<ClientResult> {
        let connection = self.connection(net, ends, address).await?;
        let (sender, receiver) = oneshot::channel();
        let reply = ReplyTo::call(move |answer: ClientAnswer| {
            if let ClientAnswer::Result(result) = answer {
                let _ = sender.send(result);
            }
        });
        // The node's deadline is earlier than the client's, so that an error of the node arrives
        // before the client gives up.
        connection.send(request, timeout.mul_f64(0.9), reply);
        receiver.await.ok()
    }

    /// Returns the open connection of a pair. Opens a new one if the pair has none, or a closed
    /// one.
    async fn connection(&self, net: &Net, ends: Ends, address: &str) -> Option<Connection> {
        let known = self.0.borrow().get(&ends).cloned();
        if let Some(connection) = known.filter(|connection| connection.closed().is_none()) {
            return Some(connection);
        }
        let network = HostNetwork { net: net.clone(), host: FIRST_CLIENT + ends.client };
        let mut duplex = network.connect(address, None).await.ok()?;
        introduce(&mut duplex, None).await.ok()?;
        let connection = BatchSender::open(duplex);
        self.0.borrow_mut().insert(ends, connection.clone());
        Some(connection)
    }
}
