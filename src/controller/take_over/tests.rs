#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::base::{Epoch, ReleaseNumber, ReplicaKey, Timestamp};
use crate::controller::left_out::LeftOut;
use crate::controller::owed::Owed;
use crate::fleet::{DialStream, LinkError};
use crate::rollout::Loan;
use crate::wire::{ClaimInfo, DialAccess, DialTarget, Refusal, Reply, Request};

#[test]
fn a_host_for_whose_maintenance_something_is_out_is_cordoned() {
    let mut state = ServiceState::new("chat".parse().unwrap());
    for (replica, host) in [(0, "h1"), (1, "h2"), (2, "h1")] {
        state.loans.push(Loan {
            to: LentTo::Maintenance { host: host.parse().unwrap() },
            replica: ReplicaKey { release: ReleaseNumber(1), replica },
            back: None,
        });
    }
    let to = ReleaseNumber(2);
    state.loans.push(Loan {
        to: LentTo::Rollout { borrower: "code".parse().unwrap(), to },
        replica: ReplicaKey { release: ReleaseNumber(1), replica: 3 },
        back: None,
    });
    let found = uncordoned(std::iter::once(&state), |host| host.as_str() == "h2");
    let expected = BTreeMap::from([("h1".parse().unwrap(), "chat".parse().unwrap())]);
    assert_eq!(found, expected);
}

/// A host that keeps a claim as an agent does, and breaks when it is told to.
struct Host {
    name: HostName,
    claim: Mutex<Option<ClaimInfo>>,
    /// It is not reached from then on that it was claimed.
    breaks: Mutex<bool>,
    away: Mutex<bool>,
}

impl Host {
    fn held_by(name: &str, holder: &str) -> Arc<Self> {
        let long_ago = Timestamp(1_000);
        let claim = ClaimInfo {
            epoch: Epoch(7),
            holder: holder.to_owned(),
            since: long_ago,
            until: Timestamp(2_000),
            renewed: None,
            now: now(),
        };
        Arc::new(Self {
            name: name.parse().unwrap(),
            claim: Mutex::new(Some(claim)),
            breaks: Mutex::new(false),
            away: Mutex::new(false),
        })
    }

    fn holder(&self) -> String {
        self.claim.lock().unwrap().as_ref().unwrap().holder.clone()
    }

    fn epoch(&self) -> u64 {
        self.claim.lock().unwrap().as_ref().unwrap().epoch.0
    }
}

#[async_trait]
impl HostLink for Host {
    fn host(&self) -> &HostName {
        &self.name
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        if *self.away.lock().unwrap() {
            return Err(LinkError::Timeout { host: self.name.clone() });
        }
        let mut claim = self.claim.lock().unwrap();
        match request {
            Request::ShowClaim { .. } => {
                Ok(Reply::Claim(claim.clone().map(|claim| ClaimInfo { now: now(), ..claim })))
            }
            Request::Claim { epoch, holder, lease_ms, .. } => {
                let held = claim.clone().unwrap();
                let granted = match epoch {
                    Some(asked) if asked == held.epoch => asked,
                    Some(asked) if asked < held.epoch => {
                        let refusal = Refusal::Held {
                            held: held.epoch,
                            holder: held.holder,
                            until: held.until,
                        };
                        return Err(LinkError::Refused { host: self.name.clone(), refusal });
                    }
                    _ => Epoch(held.epoch.0 + 1),
                };
                let until = now().plus(std::time::Duration::from_millis(lease_ms));
                *claim = Some(ClaimInfo { epoch: granted, holder, until, ..held });
                *self.away.lock().unwrap() = *self.breaks.lock().unwrap();
                Ok(Reply::Claimed { epoch: granted })
            }
            Request::ListServiceStates { .. } => Ok(Reply::Texts(Vec::new())),
            Request::LoadState { .. } => Ok(Reply::State(None)),
            other => panic!("{other:?}"),
        }
    }

    async fn dial(&self, _: &DialTarget, _: DialAccess) -> Result<Box<dyn DialStream>, LinkError> {
        Err(LinkError::Timeout { host: self.name.clone() })
    }
}

const DECK: DeckId = DeckId(uuid::Uuid::from_u128(1));
const ADA: &str = "ada@m1 #4f1c22d09ab7 (/a)";
const BOB: &str = "bob@m2 #0123456789ab (/b)";

fn bob(dir: &tempfile::TempDir, term: u64) -> Claims {
    let owed = Owed::open(&dir.path().join("owed.json"), term);
    Claims::new(DECK, BOB.to_owned(), Some(dir.path().join("claims.json")), owed)
        .leaving_out(LeftOut::open(&dir.path().join("left-out.json"), term))
}

fn links(hosts: &[&Arc<Host>]) -> Vec<Arc<dyn HostLink>> {
    hosts.iter().map(|host| Arc::clone(*host) as Arc<dyn HostLink>).collect()
}

/// h2 is lost in the moment in which it is claimed.
async fn half_taken(claims: &Claims) -> (Arc<Host>, Arc<Host>) {
    let (one, two) = (Host::held_by("h1", ADA), Host::held_by("h2", ADA));
    *two.breaks.lock().unwrap() = true;
    let taken = take(claims, DECK, &links(&[&one, &two]), 3, false).await;
    let error = taken.unwrap_err();
    assert!(error.message.starts_with("the state on h2 was not read"), "{error:?}");
    *two.breaks.lock().unwrap() = false;
    (one, two)
}

#[tokio::test]
async fn since_when_nobody_was_there_is_as_the_hosts_say() {
    let absent_since = async |renewed: Option<Timestamp>, until: Timestamp| {
        let dir = tempfile::tempdir().unwrap();
        let (claims, one) = (bob(&dir, 3), Host::held_by("h1", ADA));
        let info = one.claim.lock().unwrap().clone().unwrap();
        *one.claim.lock().unwrap() = Some(ClaimInfo { until, renewed, ..info });
        take(&claims, DECK, &links(&[&one]), 3, false).await.unwrap().renewed
    };
    // The moments are told as ages, so they are off by what passes until the answer is there.
    let about = |found: Timestamp, wanted: Timestamp| {
        assert!(found >= wanted && found.since(wanted) < LEASE / 2, "{found} {wanted}");
    };
    let ended = Timestamp(now().0 - 60_000);
    about(absent_since(Some(ended), ended).await, ended);
    let last = Timestamp(ended.0 - 25_000);
    about(absent_since(Some(last), ended).await, last);
    // An agent of before does not say: no less than what may be.
    about(absent_since(None, ended).await, Timestamp(ended.0 - 30_000));
}

#[tokio::test]
async fn a_take_over_that_cannot_be_finished_gives_back_what_it_has_taken() {
    let dir = tempfile::tempdir().unwrap();
    let claims = bob(&dir, 3);
    let (one, two) = half_taken(&claims).await;
    assert_eq!((one.holder().as_str(), one.epoch()), (ADA, 8), "an older epoch is nobody's");
    // That it was claimed nobody knows; it is another's all the same.
    assert_eq!(two.holder(), BOB);
    assert!(claims.ours().is_empty());
    let others = claims.others();
    assert_eq!(others.values().map(|o| o.holder.as_str()).collect::<Vec<_>>(), [ADA, ADA]);
    assert!(others.values().all(|o| o.has_lapsed(now())));
    // Back again: before anything is done there it has its name back, and nothing is done.
    *two.away.lock().unwrap() = false;
    let refused = claims.ensure(two.as_ref()).await;
    assert!(matches!(refused, Err(LinkError::Refused { refusal: Refusal::Held { .. }, .. })));
    assert_eq!((two.holder().as_str(), two.epoch()), (ADA, 8));
    // Who comes next takes over what is there.
    let found = take(&claims, DECK, &links(&[&one, &two]), 3, false).await.unwrap();
    assert_eq!(found.taken.len(), 2);
    claims.settle(4, &found.taken);
    assert_eq!((one.holder().as_str(), two.holder().as_str()), (BOB, BOB));
    assert!(claims.ensure(one.as_ref()).await.is_ok());
    assert_eq!(claims.survey(two.as_ref()).await, Ok(None));
    assert_eq!(two.holder(), BOB);
}

#[tokio::test]
async fn what_a_killed_take_over_has_taken_is_given_back_in_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let one = Host::held_by("h1", ADA);
    {
        let claims = bob(&dir, 3);
        take(&claims, DECK, &links(&[&one]), 3, false).await.unwrap();
        assert_eq!(one.holder(), BOB);
        // Killed before anything of it was in the journal.
    }
    let claims = bob(&dir, 3);
    assert!(claims.ours().is_empty());
    assert!(claims.ensure(one.as_ref()).await.is_err());
    assert_eq!(one.holder(), ADA);
    // And killed right after it was.
    take(&claims, DECK, &links(&[&one]), 3, false).await.unwrap();
    let claims = bob(&dir, 4);
    assert!(claims.ensure(one.as_ref()).await.is_ok());
    assert_eq!(one.holder(), BOB);
}

#[tokio::test]
async fn what_somebody_else_took_meanwhile_is_not_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let claims = bob(&dir, 3);
    let (_, two) = half_taken(&claims).await;
    let info = two.claim.lock().unwrap().clone().unwrap();
    let holder = "eve@m3 #ba9876543210 (/e)".to_owned();
    *two.claim.lock().unwrap() = Some(ClaimInfo { epoch: Epoch(9), holder, ..info });
    *two.away.lock().unwrap() = false;
    let other = claims.survey(two.as_ref()).await.unwrap().unwrap();
    assert!(other.holder.starts_with("eve"), "{other:?}");
    assert_eq!(two.epoch(), 9);
}

/// h2 is away while both are taken by force.
async fn taken_but_for_h2(claims: &Claims) -> (Arc<Host>, Arc<Host>) {
    let (one, two) = (Host::held_by("h1", ADA), Host::held_by("h2", ADA));
    *two.away.lock().unwrap() = true;
    assert!(take(claims, DECK, &links(&[&one, &two]), 3, false).await.is_err());
    assert!(claims.ours().is_empty(), "not without force");
    let found = take(claims, DECK, &links(&[&one, &two]), 3, true).await.unwrap();
    assert_eq!(found.left_out, BTreeSet::from(["h2".parse().unwrap()]));
    assert!(!claims.holds(&two.name), "it is not in the journal yet");
    claims.settle(4, &found.taken);
    *two.away.lock().unwrap() = false;
    (one, two)
}

#[tokio::test]
async fn a_host_that_force_left_out_is_held_and_taken_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = taken_but_for_h2(&bob(&dir, 3)).await;
    // In the next life, too, as soon as it is known that the others were not taken meanwhile.
    let claims = bob(&dir, 4);
    assert!(claims.holds(&two.name) && claims.others().is_empty());
    assert!(matches!(claims.survey(two.as_ref()).await, Err(LinkError::Down { .. })));
    assert_eq!(two.holder(), ADA);
    assert_eq!(claims.survey(one.as_ref()).await, Ok(None));
    assert!(claims.ensure(two.as_ref()).await.is_ok());
    assert_eq!(two.holder(), BOB);
    // From now on it is a host like any other: what is taken of it is not taken back.
    let info = two.claim.lock().unwrap().clone().unwrap();
    let epoch = Epoch(info.epoch.0 + 1);
    *two.claim.lock().unwrap() = Some(ClaimInfo { epoch, holder: ADA.to_owned(), ..info });
    let claims = bob(&dir, 4);
    assert!(claims.ensure(two.as_ref()).await.is_err());
    assert_eq!(two.holder(), ADA);
}

#[tokio::test]
async fn a_host_that_force_left_out_stays_with_who_took_it_or_another_one_since() {
    let dir = tempfile::tempdir().unwrap();
    let claims = bob(&dir, 3);
    let (_, two) = taken_but_for_h2(&claims).await;
    let info = two.claim.lock().unwrap().clone().unwrap();
    let since = now().plus(std::time::Duration::from_secs(1));
    *two.claim.lock().unwrap() = Some(ClaimInfo { since, holder: "eve@m3".to_owned(), ..info });
    assert!(claims.ensure(two.as_ref()).await.is_err());
    assert_eq!(two.holder(), "eve@m3");
    assert!(!claims.holds(&two.name) && !bob(&dir, 4).holds(&two.name));

    // Ada has h1 again: that h2 is hers is what she wants.
    let dir = tempfile::tempdir().unwrap();
    let claims = bob(&dir, 3);
    let (one, two) = taken_but_for_h2(&claims).await;
    let info = one.claim.lock().unwrap().clone().unwrap();
    let epoch = Epoch(info.epoch.0 + 1);
    *one.claim.lock().unwrap() = Some(ClaimInfo { epoch, holder: ADA.to_owned(), ..info });
    assert!(claims.survey(one.as_ref()).await.unwrap().is_some());
    assert!(claims.survey(two.as_ref()).await.unwrap().is_some());
    assert_eq!(two.holder(), ADA);
}
