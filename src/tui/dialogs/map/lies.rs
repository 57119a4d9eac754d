//! Who is on which GPU, as it is and as it would be.

use std::collections::BTreeMap;

use crate::api::{WhatIfView, WorldHost};

/// Who is on a GPU: the service's place in the world, and the replica's number.
pub(super) type Lies = BTreeMap<(String, u32), (usize, u32)>;

pub(super) fn reserved<'a>(view: &'a WhatIfView, host: &WorldHost, index: u32) -> Option<&'a str> {
    let of =
        view.world.reservations.iter().find(|r| {
            r.host == host.name && r.gpus.as_ref().is_none_or(|gpus| gpus.contains(&index))
        });
    of.map(|r| r.by.as_str())
}

/// Whether this single GPU takes nothing new.
pub(super) fn cordoned(view: &WhatIfView, host: &WorldHost, index: u32) -> bool {
    view.world.cordons.iter().any(|cordon| {
        cordon.host == host.name && cordon.gpus.as_ref().is_none_or(|gpus| gpus.contains(&index))
    })
}

pub(super) fn lies_now(view: &WhatIfView) -> Lies {
    let mut lies = Lies::new();
    for running in &view.world.placements {
        let s = view.world.services.iter().position(|s| s.name == running.service);
        for rank in &running.ranks {
            for gpu in &rank.gpus {
                lies.insert((rank.host.clone(), *gpu), (s.unwrap_or(0), running.replica));
            }
        }
    }
    lies
}

pub(super) fn lies_then(view: &WhatIfView) -> Lies {
    let mut lies = Lies::new();
    for (s, service) in view.answer.services.iter().enumerate() {
        for replica in &service.replicas {
            for rank in &replica.ranks {
                for gpu in &rank.gpus {
                    lies.insert((rank.host.clone(), *gpu), (s, replica.replica));
                }
            }
        }
    }
    lies
}
