//! A connection that is open: carries its bytes until its ends or something outside end it, and says which it was. Who
//! may connect, and whether it still may, is decided elsewhere; here nothing is ever allowed.

use std::future::Future;

use super::{ListedGuard, copy::Relaying, ending};
use crate::{
    cores::Place,
    drain,
    reason::CloseDetail,
    telemetry::{ConnectionTracker, SocketGuard},
};

/// What a connection holds while it is open. Most wait, most of the time, and there are thousands: what it took to decide
/// and to connect is gone by then, and nothing here is larger than it has to be.
pub(super) struct Open {
    pub(super) relay: Relaying,
    pub(super) tracker: ConnectionTracker,
    pub(super) drain: drain::Watch,
    pub(super) listed: ListedGuard,
    /// Of a connection that came to us; a tunnel's streams are where it is.
    pub(super) place: Option<Place>,
    /// Of a client's own socket.
    pub(super) socket: Option<SocketGuard>,
}

impl Open {
    /// Carries it to its end; `revoked` is what ends it from outside, beside the drain. Dropped before, it resets both
    /// ends.
    ///
    /// Not an `async fn`, which would keep its arguments twice.
    pub(super) fn carry(mut self, revoked: impl Future<Output = CloseDetail>) -> impl Future<Output = ()> {
        async move {
            let end = tokio::select! {
                biased;
                // The drain's cut takes tunnels down too, which is not how the connection ended; and what was allowed
                // when it was dialled may not be any more, and then no byte is carried.
                () = self.drain.cut() => Err(ending::cut()),
                revoked = revoked => Err(revoked),
                end = &mut self.relay => ending::of(end, &self.drain),
            };
            // Cutting resets both ends: dropping the relay does.
            drop(self.relay);
            self.tracker.finish(end);
            drop((self.listed, self.place, self.socket));
        }
    }
}
