//! The word for how a carried connection ended, when more than one thing ended at once.

use super::copy::{RelayEnd, RelayError};
use crate::{
    drain,
    reason::{CloseDetail, CloseReason},
};

/// What a relay that ended says. A drain that cuts takes tunnels down with it, and the loss of a tunnel can reach a
/// relay before the news of the drain does: then it was the drain.
pub(super) fn of(relay: Result<RelayEnd, RelayError>, drain: &drain::Watch) -> Result<(), CloseDetail> {
    match relay {
        Ok(_) => Ok(()),
        Err(_) if drain.is_cut() => Err(cut()),
        Err(lost) => Err(lost.detail()),
    }
}

/// The drain's own word.
pub(super) fn cut() -> CloseDetail {
    CloseReason::Drained.with("")
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::*;
    use crate::proxy::copy::{Loss, Side};

    fn lost() -> Result<RelayEnd, RelayError> {
        Err(RelayError {
            side: Side::B,
            cause: Loss::Tcp(io::ErrorKind::ConnectionReset.into()),
        })
    }

    #[tokio::test]
    async fn a_loss_is_a_reset_until_the_drain_cuts_and_the_drain_s_afterwards() {
        let (trigger, watch) = drain::channel();
        assert_eq!(of(lost(), &watch).unwrap_err().reason(), CloseReason::Reset);
        let held = watch.clone();
        let drained = tokio::spawn(trigger.start(drain::Mode::Immediate, Duration::ZERO));
        held.clone().cut().await;
        assert_eq!(of(lost(), &watch).unwrap_err().reason(), CloseReason::Drained);
        drop((watch, held));
        assert_eq!(drained.await.unwrap(), drain::Drained::Cut);
    }
}
