//! Which of its shapes each service of a deck is asked about with.
//!
//! A rollout takes the first shape by which all replicas have a place, and a question about the whole deck is to say the
//! same. So a service is offered the first shape that it could have on empty GPUs, with those in which it runs; where it
//! stays without a place by these, the next ones, one by one, and then all at once.

use std::collections::BTreeMap;

use super::compile::{fact, free_memory, needed, running_shape, shape_trouble};
use super::file::{WorldFile, WorldHost, WorldService, WorldShape};
use super::{Answer, Control, Wrong, solve};
use crate::spec::Requirement;

/// Attempts that are enough to know who stays without a place.
const GLANCE_STEPS: u64 = 1024;
/// Of the time, the share for one such look.
const GLANCE: f64 = 0.1;
/// Of the time that is left, the share for the usual shapes where somebody stays without a place by them.
const USUAL: f64 = 0.5;
/// Of the time, the share after which no other shapes are tried.
const TRYING: f64 = 0.8;
/// Most offers that are tried.
const MOST_OFFERS: usize = 32;

/// What a service may be offered.
#[derive(Clone, Debug, Default)]
struct Choice {
    /// Its shapes, in the order in which they are to be tried.
    all: Vec<WorldShape>,
    /// Those in which it runs.
    running: Vec<WorldShape>,
    /// How many of `all` were offered for themselves; once it is all of them, they are offered together.
    tried: usize,
}

impl Choice {
    /// The next offer, where there is another one.
    fn next(&mut self) -> Option<Vec<WorldShape>> {
        let at = self.tried;
        (at <= self.all.len() && self.all.len() > 1).then_some(())?;
        self.tried += 1;
        let Some(next) = self.all.get(at).copied() else { return Some(self.all.clone()) };
        let mut offer = vec![next];
        offer.extend(self.running.iter().filter(|shape| **shape != next));
        Some(offer)
    }
}

/// The shapes that the services of a world have beside those that they are offered.
#[derive(Clone, Debug, Default)]
pub(in crate::placement) struct Offers(BTreeMap<String, Choice>);

impl Offers {
    /// Leaves each service the shapes that it is usually offered. The world is the one that is asked about: what is lost
    /// or added is so already.
    pub fn narrow(world: &mut WorldFile) -> Self {
        let free = free_memory(world);
        let mut offers = Self::default();
        for service in world.services.iter().filter(|s| s.shapes.len() > 1) {
            let runs = world.placements.iter().filter(|p| p.service == service.name);
            let runs: Vec<WorldShape> = runs.map(|p| running_shape(service, p)).collect();
            let all = service.shapes.clone();
            let running = all.iter().copied().filter(|shape| runs.contains(shape)).collect();
            let suits = |shape: &WorldShape| could_be(world, &free, service, shape);
            let tried = all.iter().position(suits).unwrap_or(all.len());
            offers.0.insert(service.name.clone(), Choice { all, running, tried });
        }
        for service in &mut world.services {
            if let Some(offer) = offers.0.get_mut(&service.name).and_then(Choice::next) {
                service.shapes = offer;
            }
        }
        offers
    }

    /// The same shapes for the services of another world; whether they were others.
    pub fn as_in(world: &WorldFile, other: &mut WorldFile) -> bool {
        let shapes: BTreeMap<&str, &Vec<WorldShape>> =
            world.services.iter().map(|s| (s.name.as_str(), &s.shapes)).collect();
        let mut differ = false;
        for service in &mut other.services {
            if let Some(shapes) = shapes.get(service.name.as_str())
                && service.shapes != **shapes
            {
                service.shapes.clone_from(shapes);
                differ = true;
            }
        }
        differ
    }

    /// Offers those that stay without a place another shape; whether there was one for any of them.
    fn widen(&mut self, world: &mut WorldFile, answer: &Answer) -> bool {
        let mut any = false;
        for (service, told) in world.services.iter_mut().zip(&answer.services) {
            let lacks = told.placed < told.wanted;
            let choice = self.0.get_mut(&service.name).filter(|_| lacks);
            if let Some(offer) = choice.and_then(Choice::next) {
                service.shapes = offer;
                any = true;
            }
        }
        any
    }
}

/// Solves a world that was narrowed, with other shapes for those that stay without a place. The world then has the shapes
/// of the answer.
pub(in crate::placement) fn solve_offering(
    world: &mut WorldFile,
    offers: &mut Offers,
    control: &mut Control<'_>,
) -> Result<Answer, Wrong> {
    if offers.0.is_empty() {
        return solve(world, control);
    }
    let seen = glance(world, control)?;
    let mut wider = world.clone();
    if !offers.widen(&mut wider, &seen) {
        return solve(world, control);
    }
    let usual = within(world, control, USUAL, None)?;
    if is_whole(&usual) {
        return Ok(usual);
    }
    let mut best: Option<(Vec<i64>, WorldFile)> = None;
    for _ in 0..MOST_OFFERS {
        if (control.used)() >= TRYING {
            break;
        }
        let seen = glance(&wider, control)?;
        if best.as_ref().is_none_or(|(most, _)| *most < placed(&seen)) {
            best = Some((placed(&seen), wider.clone()));
        }
        if is_whole(&seen) || !offers.widen(&mut wider, &seen) {
            break;
        }
    }
    if let Some((most, wider)) = best
        && most > placed(&usual)
    {
        let answer = within(&wider, control, 1.0, None)?;
        if placed(&answer) > placed(&usual) {
            *world = wider;
            return Ok(answer);
        }
    }
    Ok(usual)
}

/// Whether a shape could be on some host if nothing were on its GPUs.
fn could_be(
    world: &WorldFile,
    free: &[Vec<u64>],
    service: &WorldService,
    shape: &WorldShape,
) -> bool {
    let requirement = service.require.as_ref().and_then(|r| Requirement::parse(r).ok());
    let wanted = if service.one_host { shape.gpus() } else { u64::from(shape.tensor) };
    let on = |host: &WorldHost| {
        host.up
            && !host.draining
            && !host.cordoned
            && (service.hosts.is_empty() || service.hosts.contains(&host.name))
    };
    shape_trouble(service, shape).is_none()
        && world.hosts.iter().zip(free).filter(|(host, _)| on(host)).any(|(host, free)| {
            let mut alike: BTreeMap<(&str, u64), u64> = BTreeMap::new();
            for (gpu, free) in host.gpus.iter().zip(free) {
                let total = gpu.memory_total.0;
                let suits = total >= needed(service, shape, total)
                    && (gpu.mig.is_none() || shape.gpus() == 1)
                    && requirement.as_ref().is_none_or(|r| r.holds(&|f| fact(host, gpu, *free, f)));
                if suits {
                    *alike.entry((&gpu.model, total)).or_default() += 1;
                }
            }
            alike.values().any(|count| *count >= wanted)
        })
}

/// Who would have a place, without much of a search.
fn glance(world: &WorldFile, control: &mut Control<'_>) -> Result<Answer, Wrong> {
    within(world, control, GLANCE, Some(GLANCE_STEPS))
}

/// Solves within a share of the time that is left. With a number of attempts it is one thread's work, and not for telling.
fn within(
    world: &WorldFile,
    control: &mut Control<'_>,
    share: f64,
    steps: Option<u64>,
) -> Result<Answer, Wrong> {
    let from = (control.used)();
    let share = (share * (1.0 - from)).max(1e-9);
    let used = &mut *control.used;
    let mut within = Control {
        used: &mut || (used() - from) / share,
        first: &mut || (),
        max_steps: steps.unwrap_or(control.max_steps).min(control.max_steps),
        explain: control.explain && steps.is_none(),
        helpers: control.helpers.filter(|_| steps.is_none()),
    };
    solve(world, &mut within)
}

fn is_whole(answer: &Answer) -> bool {
    answer.placed >= answer.wanted
}

/// Replicas that have a place, by priority, the highest first.
fn placed(answer: &Answer) -> Vec<i64> {
    let level = answer.objective.iter().find(|level| level.name == "placed");
    level.map_or_else(Vec::new, |level| level.by_priority.iter().map(|p| p.placed).collect())
}
