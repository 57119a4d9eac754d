use super::telling::not_read;
use super::*;
use crate::base::{Attempt, ReleaseNumber, ReplicaKey, Timestamp};
use crate::rollout::{Release, ReplicaState, Shared};
use crate::spec::{parse_deck, parse_service};
use crate::wire::{RELOAD_FAILED, RELOAD_NEEDED};

fn read(service: &str) -> (DeckSpec, ServiceSpec) {
    let deck = "id = \"01936f6e-0000-7000-8000-000000000001\"\nname = \"prod\"\n[hosts.h]\n\
        [gateways.a]\nhost = \"h\"\nsocket = \"/a\"\nurls = { chat = \"http://a:1\" }\n\
        [gateways.b]\nhost = \"h\"\nsocket = \"/b\"\nurl = \"http://b\"\n";
    let deck = parse_deck(deck, "deck.toml").unwrap();
    let spec = format!("model = \"m\"\nengine = \"vllm\"\n{service}");
    (deck, parse_service(&spec, "chat").unwrap())
}

fn of(service: &str) -> Option<Gateways> {
    let (deck, spec) = read(service);
    Gateways::of(&deck, &"chat".parse().unwrap(), &spec)
}

#[test]
fn a_service_that_names_none_of_several_is_told() {
    let told = |change: fn(&mut DeckSpec), service: &str| {
        let (mut deck, spec) = read(service);
        change(&mut deck);
        Gateways::none_named(&deck, &ServiceState::new("chat".parse().unwrap()), &spec)
    };
    assert_eq!(
        told(|_| (), "").unwrap(),
        "no gateway switches its traffic: deck.toml has 2 (a, b), and services/chat.toml names \
         none → write gateway = \"a\", or several as gateways = [\"a\", \"b\"]"
    );
    assert_eq!(told(|_| (), "gateway = \"b\""), None);
    assert_eq!(told(|_| (), "gateways = [\"b\"]"), None);
    assert_eq!(told(|deck| deck.gateways.retain(|n, _| n.as_str() == "a"), ""), None);
    assert_eq!(told(|deck| deck.gateways.clear(), ""), None, "it is done without one");
}

#[test]
fn a_gateway_that_forgets_is_told() {
    let told = of("gateways = [\"a\", \"b\"]\nbackend = \"llm\"").unwrap().forgetful().unwrap();
    assert!(told.starts_with("the gateways a, b have no `config`"), "{told}");
    assert!(told.contains("the backend llm is empty until"), "{told}");
    let (mut deck, spec) = read("gateways = [\"a\", \"b\"]");
    for (gateway, config) in deck.gateways.values_mut().zip([Some("/a.d"), None]) {
        gateway.config = config.map(str::to_owned);
    }
    let one = Gateways::of(&deck, &"chat".parse().unwrap(), &spec).unwrap();
    assert!(one.forgetful().unwrap().starts_with("the gateway b has no `config`"));
    let configs: Vec<_> = views(&deck).into_iter().map(|view| view.config).collect();
    assert_eq!(configs, [Some("/a.d".to_owned()), None]);
    deck.gateways.retain(|_, gateway| gateway.config.is_some());
    let (_, spec) = read("");
    assert_eq!(Gateways::of(&deck, &"chat".parse().unwrap(), &spec).unwrap().forgetful(), None);
}

#[test]
fn a_gateway_that_forgets_is_refused_until_somebody_accepts_it() {
    let refused = of("gateways = [\"a\", \"b\"]").unwrap().last().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid);
    assert!(refused.message.starts_with("the gateways a, b have no `config`"), "{refused:?}");
    let hint = refused.hint.unwrap();
    assert!(hint.contains("config = ") && hint.contains("runtime_only = true"), "{hint}");
    let (mut deck, spec) = read("gateways = [\"a\", \"b\"]");
    let last = |deck: &DeckSpec| {
        Gateways::of(deck, &"chat".parse().unwrap(), &spec).unwrap().last().map_err(|e| e.message)
    };
    deck.gateways.values_mut().next().unwrap().runtime_only = true;
    assert!(last(&deck).unwrap_err().starts_with("the gateway b has no `config`"));
    deck.gateways.values_mut().last().unwrap().config = Some("/b.d".to_owned());
    assert_eq!(last(&deck), Ok(()));
    // It stays told.
    let told = Gateways::of(&deck, &"chat".parse().unwrap(), &spec).unwrap().forgetful().unwrap();
    assert!(told.starts_with("the gateway a has no `config`"), "{told}");
}

#[test]
fn what_haproxy_has_not_read_is_told() {
    let (deck, _) = read("");
    let gateway = deck.gateways.values().next().unwrap();
    let told = |said: &str| not_read(gateway, &"chat".parse().unwrap(), said);
    let failed = told(&format!("{RELOAD_FAILED}`systemctl reload haproxy`: exit status: 1"));
    assert!(failed.unwrap().starts_with(
        "HAProxy on h was not reloaded, and goes on with its configuration before: `systemctl"
    ));
    assert!(told(RELOAD_NEEDED).unwrap().contains("reload HAProxy on h by hand"));
    assert_eq!((told("reloaded"), told("written"), told("unchanged")), (None, None, None));
}

#[test]
fn a_service_has_the_gateways_it_names() {
    assert!(of("").is_none(), "two, and none is named");
    assert_eq!(of("gateway = \"a\"").unwrap().url().as_deref(), Some("http://a:1"));
    assert_eq!(of("gateway = \"b\"").unwrap().url().as_deref(), Some("http://b"));
    let both = of("gateways = [\"a\", \"b\"]").unwrap();
    assert_eq!((both.places.len(), both.unknown.len()), (2, 0));
    let wrong = of("gateways = [\"a\", \"c\"]").unwrap();
    assert_eq!(wrong.unknown, ["c".parse::<ServiceName>().unwrap()]);
}

#[test]
fn what_another_release_has_already_is_not_told_twice() {
    let both = of("gateways = [\"a\", \"b\"]").unwrap();
    let (a, b) = (of("gateway = \"a\"").unwrap(), of("gateway = \"b\"").unwrap());
    assert_eq!(a.beside(std::slice::from_ref(&both)), None);
    let names = |g: Option<Gateways>| g.map(|g| g.places.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names(both.beside(std::slice::from_ref(&a))), names(Some(b)));
    // Another backend of the same gateway is another table.
    let other = of("gateway = \"a\"\nbackend = \"old\"").unwrap();
    assert_eq!(names(other.beside(std::slice::from_ref(&a))), names(Some(a)));
}

/// Routes of a service of which these releases live, the newest last; the gateway `a` is written.
fn routes(specs: &[&str], live: &[u64]) -> Routes {
    let (mut deck, _) = read("");
    let a = deck.gateways.values_mut().next().unwrap();
    a.config = Some("/etc/haproxy/gpudeck.d".to_owned());
    let mut state = ServiceState::new("chat".parse().unwrap());
    for (number, spec) in (1..).map(ReleaseNumber).zip(specs) {
        let made = super::super::saved::tests::release(deck.id, &state.service);
        let release = Release { number, spec: read(spec).1, ..made };
        state.releases.insert(number, Shared::from(release));
        if live.contains(&number.0) {
            state.stable = Some(number);
            let replica = ReplicaState::pending(Attempt::FIRST, Timestamp(0), Timestamp(0));
            state.replicas.insert(ReplicaKey { release: number, replica: 0 }, replica.into());
        }
    }
    Routes::of(&deck, &state)
}

#[test]
fn what_another_service_fills_by_now_is_not_emptied() {
    let specs =
        ["gateways = [\"a\", \"b\"]\nbackend = \"old\"", "gateway = \"a\"\nbackend = \"new\""];
    let left = |of_others: &[&str]| {
        let mut routes = routes(&specs, &[2]);
        let others: Vec<Gateways> = of_others.iter().filter_map(|spec| of(spec)).collect();
        routes.leave_to(&others);
        let places = routes.leaving.iter().flat_map(|g| g.places.keys().map(ToString::to_string));
        places.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(left(&[]), ["a", "b"]);
    assert_eq!(left(&["gateway = \"a\"\nbackend = \"other\""]), ["a", "b"]);
    assert_eq!(left(&["gateway = \"a\"\nbackend = \"old\""]), ["b"]);
    let both = "gateways = [\"a\", \"b\"]\nbackend = \"old\"";
    assert_eq!(left(&["gateway = \"b\"\nbackend = \"new\"", both]), Vec::<String>::new());
}

#[test]
fn a_file_holds_the_backends_of_all_releases_that_live() {
    let specs = [
        "gateways = [\"a\", \"b\"]\nbackend = \"old\"\n[rollout]\ncanary_header = \"x: 1\"",
        "gateway = \"a\"\nbackend = \"new\"",
    ];
    let both = routes(&specs, &[1, 2]);
    let [new, old] = both.serving.as_slice() else { panic!("{both:?}") };
    let a: ServiceName = "a".parse().unwrap();
    let also: Vec<_> = new.also[&a].iter().map(|o| (o.backend.as_str(), o.canary)).collect();
    assert_eq!((new.backend.as_str(), also), ("new", vec![("old", true)]));
    // The file at `a` is the new one's; what is filled there at run time is both's.
    assert!(new.places[&a].config.is_some() && old.places[&a].config.is_none());
    assert!(old.also.is_empty() && old.places.len() == 2 && both.leaving.is_empty());

    // Whoever serves alone has the file alone; the other is left, and may be gone with its section.
    for (alone, backend, left) in [(2, "new", "old"), (1, "old", "new")] {
        let routes = routes(&specs, &[alone]);
        let [one] = routes.serving.as_slice() else { panic!("{routes:?}") };
        assert!(one.backend == backend && one.also.is_empty() && !one.leaving);
        // Until HAProxy has read the file without it, clients may be led there.
        let (at_file, elsewhere): (Vec<_>, Vec<_>) =
            routes.leaving.iter().partition(|g| g.until_read);
        let [other] = at_file.as_slice() else { panic!("{routes:?}") };
        assert!(other.backend == left && other.leaving && other.places[&a].config.is_none());
        assert_eq!(elsewhere.len(), usize::from(left == "old"), "`b` has no file: {routes:?}");
    }
    // The same backend, or another gateway: nothing is beside it.
    let same = routes(&["gateway = \"a\"", "gateway = \"a\"\nreplicas = 2"], &[1, 2]);
    assert!(same.serving.len() == 1 && same.serving[0].also.is_empty());
    let apart = routes(&["gateway = \"b\"\nbackend = \"old\"", "gateway = \"a\""], &[1, 2]);
    assert!(apart.serving.len() == 2 && apart.serving.iter().all(|g| g.also.is_empty()));
}

#[test]
fn frontends_of_people_are_to_be_led_to_the_new_backend() {
    let written = |service: &str, listen: bool| {
        let (mut deck, _) = read("");
        let a = deck.gateways.values_mut().next().unwrap();
        a.config = Some("/etc/haproxy/gpudeck.d".to_owned());
        if listen {
            a.listen.insert("chat".parse().unwrap(), ":8080".to_owned());
        }
        Gateways::of(&deck, &"chat".parse().unwrap(), &read(service).1).unwrap()
    };
    let both = "gateways = [\"a\", \"b\"]\nbackend = \"new\"";
    let (old, new) = (written("gateways = [\"a\", \"b\"]", false), written(both, false));
    let told = new.to_be_led(&old).unwrap();
    assert!(told.starts_with("the backend chat becomes new: "), "{told}");
    assert!(told.contains("both at a, and"), "{told}");
    assert_eq!(new.to_be_led(&new), None);
    assert_eq!(written(both, true).to_be_led(&old), None, "its frontend is ours");
    assert_eq!(new.to_be_led(&written("gateway = \"b\"", false)), None);
}

#[test]
fn a_backend_is_not_another_releases_canary() {
    let with_rule = of("gateway = \"a\"\n[rollout]\ncanary_header = \"x-canary: 1\"").unwrap();
    let named_so = of("gateway = \"a\"\nbackend = \"chat-canary\"").unwrap();
    let (gateway, name) = named_so.tangled_with(&with_rule).unwrap();
    assert_eq!((gateway.as_str(), name.as_str()), ("a", "chat-canary"));
    assert!(with_rule.tangled_with(&named_so).is_some());
    assert_eq!(with_rule.tangled_with(&with_rule), None, "the same backend");
    assert_eq!(of("gateway = \"a\"\nbackend = \"new\"").unwrap().tangled_with(&with_rule), None);
    let elsewhere = of("gateway = \"b\"\nbackend = \"chat-canary\"").unwrap();
    assert_eq!(elsewhere.tangled_with(&with_rule), None);
}

/// What a header or a cookie led to is emptied when the next release has no such rule: nobody else would.
#[test]
fn the_backend_of_a_rule_that_is_gone_is_emptied() {
    let (deck, with) = read("gateway = \"a\"\n[rollout]\ncanary_header = \"x-canary: 1\"");
    let (_, without) = read("gateway = \"a\"");
    let mut state = ServiceState::new("chat".parse().unwrap());
    let routes = |state: &ServiceState| Routes::of(&deck, state).serving.remove(0);
    for (number, spec) in [(1, &without), (2, &with), (3, &without)] {
        let number = ReleaseNumber(number);
        let made = super::super::saved::tests::release(deck.id, &state.service);
        let release = Release { number, spec: spec.clone(), ..made };
        state.releases.insert(number, Shared::from(release));
        state.stable = Some(number);
        let now = routes(&state);
        let expected = (number.0 == 2, number.0 == 3);
        assert_eq!((now.canary.is_some(), now.left_canary), expected);
    }
}

/// A second gateway in deck.toml takes no service from the first one, which it was planned for as the only one.
#[test]
fn the_only_gateway_stays_when_others_come() {
    let (mut deck, none) = read("");
    let (a, b): (ServiceName, ServiceName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let mut state = ServiceState::new("chat".parse().unwrap());
    assert_eq!(Gateways::only_one(&deck, &state, &none), None, "there are two");
    let second = deck.gateways.remove(&b).unwrap();
    assert_eq!(Gateways::only_one(&deck, &state, &none), Some(a.clone()));
    let made = super::super::saved::tests::release(deck.id, &state.service);
    let release = Release { spec: none.clone(), gateway: Some(a.clone()), ..made };
    state.stable = Some(release.number);
    state.releases.insert(release.number, Shared::from(release.clone()));
    deck.gateways.insert(b.clone(), second);
    let names = |g: Option<Gateways>| {
        g.map(|g| g.places.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    let one = Some(vec!["a".to_owned()]);
    assert_eq!(names(Gateways::of_release(&deck, &release)), one);
    assert_eq!(names(Routes::of(&deck, &state).serving.pop()), one);
    // So does the next release that names none, and is told.
    assert_eq!(names(Gateways::to_be(&deck, &state.service, Some(&state), &none)), one);
    let told = Gateways::none_named(&deck, &state, &none).unwrap();
    assert!(told.starts_with("it stays at the gateway a, through which it is served"), "{told}");
    // It stays where its spec named one, too: an undo goes to a spec that is older than the second gateway.
    let mut later = release.clone();
    (later.gateway, later.spec) = (None, read("gateway = \"a\"").1);
    state.releases.insert(later.number, Shared::from(later));
    assert_eq!(names(Gateways::to_be(&deck, &state.service, Some(&state), &none)), one);
    let mut both = release;
    (both.gateway, both.spec) = (None, read("gateways = [\"a\", \"b\"]").1);
    state.releases.insert(both.number, Shared::from(both));
    assert_eq!(Gateways::only_one(&deck, &state, &none), None, "which of the two it would be");
    let (_, named) = read("gateway = \"b\"");
    let to_be = Gateways::to_be(&deck, &state.service, Some(&state), &named);
    assert_eq!(names(to_be), Some(vec!["b".to_owned()]));
}

/// Who leaves a gateway that was taken out of deck.toml need not wait for it.
#[test]
fn a_gateway_that_is_gone_for_good_can_be_left() {
    let unknown = |live: &[u64]| {
        let routes = routes(&["gateways = [\"a\", \"gone\"]", "gateway = \"b\""], live);
        routes.serving.iter().map(|g| g.unknown.len()).collect::<Vec<_>>()
    };
    assert_eq!(unknown(&[1]), [1], "who names it is told");
    assert_eq!(unknown(&[1, 2]), [0, 0]);
    let only_there = routes(&["gateway = \"gone\"", "gateway = \"b\""], &[1, 2]);
    assert!(only_there.serving.len() == 1 && only_there.leaving.is_empty(), "{only_there:?}");
}
