//! The store against an authority that does what the test says, under a clock that the test moves.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::*;
use crate::tls::testing::{HOUR, TestCa, id};

/// What the authority does next; the last entry holds for good.
#[derive(Clone, Copy)]
enum Answer {
    Sign(Duration),
    Refuse,
    Fail,
}

struct FakeAuthority {
    ca: TestCa,
    clock: ManualClock,
    answer: Mutex<Answer>,
    calls: Mutex<HashMap<SpiffeId, usize>>,
    /// A call takes one; none left holds it.
    gate: Semaphore,
}

impl FakeAuthority {
    fn calls(&self, id: &SpiffeId) -> usize {
        self.calls.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }
}

impl CertificateSource for FakeAuthority {
    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<WorkloadCertificate, CaClientError>> {
        *self.calls.lock().unwrap().entry(id.clone()).or_default() += 1;
        Box::pin(async move {
            self.gate.acquire().await.unwrap().forget();
            let status = match *self.answer.lock().unwrap() {
                Answer::Sign(ttl) => {
                    let now = self.clock.now();
                    return Ok(self.ca.certificate_for(id, now - HOUR, now + ttl));
                }
                Answer::Refuse => tonic::Status::permission_denied("not here"),
                Answer::Fail => tonic::Status::unavailable("down"),
            };
            Err(CaClientError::Call {
                address: "ca:15012".to_owned(),
                cause: Box::new(status),
            })
        })
    }
}

fn mesh() -> (Arc<FakeAuthority>, ManualClock, Arc<SecretStore>) {
    let clock = ManualClock::new();
    let authority = Arc::new(FakeAuthority {
        ca: TestCa::new(),
        clock: clock.clone(),
        answer: Mutex::new(Answer::Sign(24 * HOUR)),
        calls: Mutex::default(),
        gate: Semaphore::new(1000),
    });
    let store = SecretStore::with_source(Arc::clone(&authority) as _, Arc::new(clock.clone()));
    (authority, clock, store)
}

/// Lets all tasks run until `true_now`; the bound only ends a failing test.
async fn until(mut true_now: impl FnMut() -> bool) {
    timeout(Duration::from_secs(10), async {
        while !true_now() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it becomes true");
}

#[tokio::test]
async fn many_connections_at_once_make_one_request() {
    let (authority, _, store) = mesh();
    let sleep = id("default", "sleep");
    let got = join_all((0..50).map(|_| store.certificate(&sleep))).await;
    let first = got[0].as_ref().unwrap();
    assert!(got.iter().all(|one| Arc::ptr_eq(one.as_ref().unwrap(), first)));
    assert_eq!(authority.calls(&sleep), 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_life_and_who_has_the_old_one_keeps_it() {
    let (authority, clock, store) = mesh();
    let sleep = id("default", "sleep");
    let old = store.certificate(&sleep).await.unwrap();
    clock.advance(10 * HOUR);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        authority.calls(&sleep),
        1,
        "half-life is at 12 hours, less a tenth at most"
    );
    clock.advance(2 * HOUR);
    until(|| authority.calls(&sleep) == 2).await;
    let mut new = store.certificate(&sleep).await.unwrap();
    while Arc::ptr_eq(&old, &new) {
        tokio::task::yield_now().await;
        new = store.certificate(&sleep).await.unwrap();
    }
    assert!(new.not_after() > old.not_after());
    assert!(old.is_valid_at(clock.now()));
}

#[tokio::test]
async fn a_valid_certificate_is_kept_while_the_authority_is_down() {
    let (authority, clock, store) = mesh();
    let sleep = id("default", "sleep");
    let old = store.certificate(&sleep).await.unwrap();
    authority.answer(Answer::Fail);
    clock.advance(12 * HOUR);
    until(|| authority.calls(&sleep) == 2).await;
    clock.advance(11 * HOUR);
    until(|| authority.calls(&sleep) == 3).await;
    assert!(Arc::ptr_eq(&old, &store.certificate(&sleep).await.unwrap()));
    assert_eq!(store.dump()[0].state, "Available");
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_never_handed_out() {
    let (authority, clock, store) = mesh();
    let sleep = id("default", "sleep");
    store.certificate(&sleep).await.unwrap();
    authority.answer(Answer::Fail);
    clock.advance(24 * HOUR);
    let asked = Instant::now();
    let error = store.certificate(&sleep).await.unwrap_err();
    assert_eq!(asked.elapsed(), LONGEST_WAIT_FOR_CERTIFICATE);
    assert_eq!(
        error.close_detail().to_string(),
        "identity_unavailable: no certificate for spiffe://cluster.local/ns/default/sa/sleep: the authority \
         at ca:15012 answered Unavailable: down"
    );
    assert!(store.dump()[0].state.starts_with("Unavailable: "));
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_stays_silent_costs_five_seconds_and_no_more() {
    let (authority, _, store) = mesh();
    authority.gate.forget_permits(1000);
    let asked = Instant::now();
    let error = store.certificate(&id("default", "sleep")).await.unwrap_err();
    assert!(matches!(error, IdentityError::Timeout { .. }));
    assert_eq!(asked.elapsed(), LONGEST_WAIT_FOR_CERTIFICATE);
    assert_eq!(store.dump()[0].state, "Initializing");
}

#[tokio::test]
async fn who_waits_gets_the_certificate_once_the_authority_is_back() {
    let (authority, clock, store) = mesh();
    let sleep = id("default", "sleep");
    authority.answer(Answer::Fail);
    let waiting = tokio::spawn({
        let (store, sleep) = (Arc::clone(&store), sleep.clone());
        async move { store.certificate(&sleep).await }
    });
    until(|| authority.calls(&sleep) == 1).await;
    authority.answer(Answer::Sign(HOUR));
    until(|| {
        clock.advance(Duration::from_millis(100));
        waiting.is_finished()
    })
    .await;
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_when_it_is_repeated_and_not_for_ever() {
    let (authority, clock, store) = mesh();
    let sleep = id("default", "sleep");
    authority.answer(Answer::Refuse);
    store.retain(&HashSet::from([sleep.clone()]));
    until(|| {
        clock.advance(Duration::from_secs(1));
        authority.calls(&sleep) >= 4
    })
    .await;
    let asked = Instant::now();
    let error = store.certificate(&sleep).await.unwrap_err();
    assert!(matches!(error, IdentityError::Unavailable { .. }));
    assert_eq!(asked.elapsed(), Duration::ZERO);
    authority.answer(Answer::Sign(HOUR));
    until(|| {
        clock.advance(Duration::from_secs(1));
        store.dump()[0].state == "Available"
    })
    .await;
    assert!(store.certificate(&sleep).await.is_ok());
}

#[tokio::test]
async fn what_is_retained_is_fetched_ahead_and_the_rest_is_forgotten() {
    let (authority, _, store) = mesh();
    let (sleep, other) = (id("default", "sleep"), id("default", "other"));
    store.retain(&HashSet::from([sleep.clone(), other.clone()]));
    until(|| store.dump().iter().all(|one| one.state == "Available")).await;
    store.retain(&HashSet::from([sleep.clone()]));
    let left: Vec<_> = store.dump().into_iter().map(|one| one.identity).collect();
    assert_eq!(left, [sleep.to_string()]);
    assert_eq!(authority.calls(&sleep), 1, "what stays is not asked for again");
}

#[tokio::test]
async fn who_waits_for_an_identity_that_leaves_is_told_so() {
    let (authority, _, store) = mesh();
    authority.gate.forget_permits(1000);
    let sleep = id("default", "sleep");
    let waiting = tokio::spawn({
        let (store, sleep) = (Arc::clone(&store), sleep.clone());
        async move { store.certificate(&sleep).await }
    });
    until(|| authority.calls(&sleep) == 1).await;
    store.retain(&HashSet::new());
    assert!(matches!(
        waiting.await.unwrap(),
        Err(IdentityError::Forgotten { .. })
    ));
}

#[tokio::test]
async fn a_connection_does_not_queue_behind_certificates_fetched_ahead() {
    let (authority, _, store) = mesh();
    authority.gate.forget_permits(1000);
    let many: HashSet<_> = (0..20).map(|n| id("default", &format!("w{n}"))).collect();
    store.retain(&many);
    let asked = || many.iter().filter(|id| authority.calls(id) > 0).count();
    until(|| asked() == 8).await;
    let waited_for = many.iter().find(|id| authority.calls(id) == 0).unwrap();
    let waiting = tokio::spawn({
        let (store, id) = (Arc::clone(&store), waited_for.clone());
        async move { store.certificate(&id).await }
    });
    until(|| authority.calls(waited_for) == 1).await;
    assert_eq!(asked(), 9);
    authority.gate.add_permits(1000);
    assert!(waiting.await.unwrap().is_ok());
    until(|| asked() == 20).await;
}

#[tokio::test]
async fn the_dump_has_the_shape_that_istioctl_reads() {
    let (_, _, store) = mesh();
    store.certificate(&id("default", "sleep")).await.unwrap();
    let dump = serde_json::to_value(store.dump()).unwrap();
    let one = &dump[0];
    assert_eq!(one["identity"], "spiffe://cluster.local/ns/default/sa/sleep");
    assert_eq!(one["state"], "Available");
    for part in ["certChain", "rootCerts"] {
        let certificate = &one[part][0];
        assert!(
            certificate["pem"]
                .as_str()
                .unwrap()
                .starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t")
        );
        let serial = certificate["serialNumber"].as_str().unwrap();
        assert!(serial.bytes().all(|digit| digit.is_ascii_digit()) && !serial.is_empty());
        for date in ["validFrom", "expirationTime"] {
            let date = certificate[date].as_str().unwrap();
            assert!(date.len() == 20 && date.ends_with('Z'), "{date}");
        }
    }
}
