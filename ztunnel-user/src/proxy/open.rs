//! A connection that is open: carries its bytes until its ends or something outside end it, and says which it was. Who
//! may connect, and whether it still may, is decided elsewhere; here nothing is ever allowed.

use std::{future::Future, pin::Pin};

use tokio::net::TcpStream;

use super::{ListedGuard, copy::Relaying, dial, ending, judge::Since};
use crate::{
    cores::Place,
    drain,
    reason::CloseDetail,
    telemetry::{ConnectionTracker, SocketGuard},
};

/// What a connection holds while it is open.
pub(super) struct Open {
    pub(super) relay: Relaying,
    pub(super) tracker: ConnectionTracker,
    pub(super) drain: drain::Watch,
    pub(super) since: Since,
    pub(super) listed: ListedGuard,
    /// Of a connection that came to us; a tunnel's streams are where it is.
    pub(super) place: Option<Place>,
    /// Of a client's own socket.
    pub(super) socket: Option<SocketGuard>,
}

/// A connection that is being carried. Dropped before its end, it resets both ends.
pub(super) type Carrying = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Open {
    /// Carries it to its end. `revoked` says why it may be open no more, if that is so: it is asked whenever the mesh has
    /// changed.
    pub(super) fn carry(mut self, revoked: impl Fn() -> Option<CloseDetail> + Send + 'static) -> Carrying {
        Box::pin(async move {
            let end = loop {
                tokio::select! {
                    biased;
                    // The drain's cut takes tunnels down too, which is not how the connection ended; and what was
                    // allowed when it was dialled may not be any more, and then no byte is carried.
                    () = self.drain.cut() => break Err(ending::cut()),
                    () = self.since.changed() => if let Some(why) = revoked() {
                        break Err(why);
                    },
                    end = &mut self.relay => break ending::of(end, &self.drain),
                }
            };
            // Cutting resets both ends: dropping the relay does.
            drop(self.relay);
            self.tracker.finish(end);
            drop((self.listed, self.place, self.socket));
        })
    }
}

/// Ends a client's connection that could not be opened: it gets its line, and its client a reset.
pub(super) fn turn_away(tracker: ConnectionTracker, client: TcpStream, why: CloseDetail) -> Option<Carrying> {
    tracker.finish(Err(why));
    dial::refuse(client);
    None
}

/// Opens a connection and carries it. Most are open and wait, most of the time, and there are thousands of them: what it
/// takes to decide and to connect, several times as much as what is needed afterwards, is given back in between.
pub(super) fn open_and_carry(
    opening: impl Future<Output = Option<Carrying>> + Send,
) -> impl Future<Output = ()> + Send {
    let opening = Box::pin(opening);
    async move {
        let carrying = opening.await;
        if let Some(carrying) = carrying {
            carrying.await;
        }
    }
}
