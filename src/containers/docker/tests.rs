//! The runtime against an engine that does as it is told: it hangs, forgets, refuses and comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use serde_json::{Value, json};

use super::body::{LABEL_BUILD, LABEL_INSTALLATION};
use super::endpoint::Endpoint;
use super::settings::{Confinement, Layout};
use super::*;
use crate::base::Private;
use crate::containers::Exit;

/// A bound for waiting on a loaded machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);
const INSTALLATION: &str = "0011223344556677";
const IMAGE: &str = "sha256:aa";

#[derive(Clone, Default)]
struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    image: String,
    running: bool,
    code: i64,
}

/// What the engine has, and how it behaves.
#[derive(Default)]
struct World {
    containers: BTreeMap<String, Container>,
    /// No answer to requests whose line contains one of these, until it is taken out.
    hangs: BTreeSet<String>,
    /// Ids whose removal fails.
    busy: BTreeSet<String>,
    /// Nothing is told of ends.
    deaf: bool,
    /// Counts up to end all streams of events.
    streams: u64,
    /// Ends that are to be told to every stream.
    died: Vec<String>,
    asked: Vec<String>,
    bodies: Vec<Value>,
    made: u64,
}

struct Fake {
    world: Mutex<World>,
    changed: Condvar,
    folder: tempfile::TempDir,
}

impl Fake {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["out", "in", "agent", "state", "run"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Arc::new(Self { world: Mutex::default(), changed: Condvar::new(), folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    /// Answers from now on, until the test ends.
    fn listen(self: &Arc<Self>) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let fake = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = Arc::clone(&fake);
                // Whoever asked may have given up.
                thread::spawn(move || drop(fake.serve(stream)));
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let done = change(&mut lock_world(&self.world));
        self.changed.notify_all();
        done
    }

    /// Waits until it has come to what is wanted.
    fn until<T>(&self, what: &str, wanted: impl Fn(&World) -> Option<T>) -> T {
        let limit = Instant::now() + LIMIT;
        let mut world = lock_world(&self.world);
        loop {
            if let Some(found) = wanted(&world) {
                return found;
            }
            let left = limit.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not in time: {what}; asked: {:#?}", world.asked);
            world = self.changed.wait_timeout(world, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        let (line, body) = request(&mut stream)?;
        self.change(|world| {
            world.asked.push(line.clone());
            if !body.is_null() {
                world.bodies.push(body.clone());
            }
        });
        let limit = Instant::now() + LIMIT;
        {
            let mut world = lock_world(&self.world);
            while world.hangs.iter().any(|it| line.contains(it)) && Instant::now() < limit {
                let waited = self.changed.wait_timeout(world, Duration::from_millis(500));
                world = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let (method, rest) = line.split_once(' ').unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        if parts == ["events"] {
            return self.tell_events(&mut stream);
        }
        let (status, answer) = self.change(|world| world.answer(method, &parts, query, &body));
        let text = if answer.is_null() { String::new() } else { answer.to_string() };
        let kind = "Content-Type: application/json\r\nConnection: close";
        write!(stream, "HTTP/1.1 {status} said\r\n{kind}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    }

    fn tell_events(&self, stream: &mut UnixStream) -> io::Result<()> {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
        let (streams, mut told) = {
            let world = lock_world(&self.world);
            (world.streams, world.died.len())
        };
        loop {
            let mut world = lock_world(&self.world);
            while world.streams == streams && (world.deaf || world.died.len() == told) {
                let waited = self.changed.wait_timeout(world, Duration::from_millis(500));
                world = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if world.streams != streams {
                return Ok(());
            }
            let news = world.died.split_off(told);
            world.died.extend(news.iter().cloned());
            told = world.died.len();
            drop(world);
            for id in news {
                writeln!(stream, "{}", json!({"Type": "container", "Action": "die", "Actor": {"ID": id}}))?;
            }
        }
    }

    fn settings(&self) -> Settings {
        let path = |name: &str| self.folder.path().join(name);
        Settings {
            endpoint: Endpoint {
                address: format!("unix://{}", self.socket().display()),
                said_by: "a test".into(),
            },
            installation: INSTALLATION.into(),
            image: Image::Named("agent:latest".into()),
            layout: Layout::Own,
            agent_uid: 10_001,
            confinement: Confinement::default(),
            doctor: "doctor".into(),
            probe_folder: path("run/try"),
            owner_file: path("run/agents-owner"),
            stop_grace: Ms(100),
        }
    }

    fn runtime(&self, patience: Patience) -> (Docker, Receiver<ContainerEvent>) {
        let (send, events) = channel();
        let send = Mutex::new(send);
        let sink: Sink = Arc::new(move |event| {
            // The test may be over.
            let _ = send.lock().unwrap_or_else(PoisonError::into_inner).send(event);
        });
        (Docker::start_with(self.settings(), sink, Box::new(|_| {}), patience).unwrap(), events)
    }

    fn spec(&self, no: u32) -> StartSpec {
        let path = |name: &str| self.folder.path().join(name);
        StartSpec {
            session: SessionNo(no),
            name: session(no),
            attempt: Attempt(u64::from(no)),
            out_dir: path("out"),
            in_dir: path("in"),
            agent_dir: path("agent"),
            state_dir: path("state"),
            seed_dir: path("seed"),
            timezone: "UTC".into(),
            env: vec![("KEY".into(), Private("secret".into()))],
        }
    }

    /// A container of an earlier daemon runs.
    fn left(&self, id: &str, no: u32, image: &str) {
        let labels = [
            (LABEL_INSTALLATION, INSTALLATION.to_owned()),
            (LABEL_SESSION, session(no).to_string()),
            (LABEL_ATTEMPT, Attempt(u64::from(no)).to_string()),
            (LABEL_BUILD, IMAGE.to_owned()),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        let container = Container { name: id.into(), labels, image: image.into(), running: true, code: 0 };
        self.change(|world| drop(world.containers.insert(id.into(), container)));
    }

    /// The container of a session, once it runs.
    fn running(&self, no: u32) -> String {
        let name = session(no).to_string();
        self.until("it runs", |world| {
            let mut all = world.containers.iter();
            let found = all.find(|(_, it)| it.running && it.labels.get(LABEL_SESSION) == Some(&name));
            found.map(|(id, _)| id.clone())
        })
    }
}

fn lock_world(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn session(no: u32) -> SessionName {
    SessionName::new("agent", format!("s{no}")).unwrap()
}

/// The line of a request without its protocol, and its body.
fn request(stream: &mut UnixStream) -> io::Result<(String, Value)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let mut words = head.split(' ');
    let line = format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok((line, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

impl World {
    fn end(&mut self, id: &str, code: i64) {
        if let Some(it) = self.containers.get_mut(id).filter(|it| it.running) {
            (it.running, it.code) = (false, code);
            self.died.push(id.to_owned());
        }
    }

    fn find(&self, text: &str) -> Option<String> {
        let mut all = self.containers.iter();
        all.find(|(id, it)| *id == text || it.name.to_lowercase() == text).map(|(id, _)| id.clone())
    }

    fn answer(&mut self, method: &str, parts: &[&str], query: &str, body: &Value) -> (u16, Value) {
        let none = || (404, json!({"message": "no such"}));
        match (method, parts) {
            ("get", ["version"]) => {
                (200, json!({"Version": "20.10.0", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}))
            }
            ("get", ["info"]) => (200, json!({"OperatingSystem": "none", "PidsLimit": false})),
            ("get", ["_ping"]) => (200, json!("OK")),
            ("get", ["images", "agent:latest", "json"]) => (200, json!({"Id": IMAGE})),
            ("get", ["containers", "json"]) => {
                let listed = self.containers.iter().map(|(id, it)| {
                    let state = if it.running { "running" } else { "exited" };
                    json!({"Id": id, "Labels": it.labels, "ImageID": it.image, "State": state})
                });
                (200, listed.collect())
            }
            ("post", ["containers", "create"]) => {
                self.made += 1;
                let name =
                    query.split("name=").nth(1).unwrap_or_default().split('&').next().unwrap_or_default();
                let id = format!("c{}", self.made);
                let labels = serde_json::from_value(body["Labels"].clone()).unwrap_or_default();
                let container =
                    Container { name: name.into(), labels, image: IMAGE.into(), running: false, code: 0 };
                self.containers.insert(id.clone(), container);
                (201, json!({"Id": id, "Warnings": ["no swap limit here"]}))
            }
            (_, ["containers", text, rest @ ..]) => {
                let Some(id) = self.find(text) else { return none() };
                self.of_container(method, &id, rest, query)
            }
            _ => none(),
        }
    }

    fn of_container(&mut self, method: &str, id: &str, rest: &[&str], query: &str) -> (u16, Value) {
        let it = self.containers[id].clone();
        match (method, rest) {
            ("get", ["json"]) => (
                200,
                json!({"Id": id, "State": {"Running": it.running, "ExitCode": it.code, "OOMKilled": false}}),
            ),
            ("get", ["logs"]) => (200, Value::Null),
            ("post", ["start"]) => {
                // What tries whose files are is no runner here.
                let runs = !it.name.contains("-probe-");
                if let Some(it) = self.containers.get_mut(id) {
                    (it.running, it.code) = (runs, 64);
                }
                (204, Value::Null)
            }
            ("post", ["wait"]) => (200, json!({"StatusCode": it.code})),
            ("post", ["kill"]) => {
                self.end(id, if query.contains("sigkill") { 137 } else { 143 });
                (204, Value::Null)
            }
            ("post", ["stop"]) => {
                self.end(id, 0);
                (204, Value::Null)
            }
            ("delete", []) if self.busy.contains(id) => {
                (500, json!({"message": "unlinkat merged: device or resource busy"}))
            }
            ("delete", []) => {
                self.containers.remove(id);
                (204, Value::Null)
            }
            _ => (404, json!({"message": "no such page"})),
        }
    }
}

/// Far below what a person waits for, far above what a loaded machine takes to say nothing.
fn short() -> Patience {
    Patience {
        change: Duration::from_secs(2),
        first_answer: Duration::from_millis(300),
        compare: Duration::from_millis(200),
        ..Patience::default()
    }
}

fn next(events: &Receiver<ContainerEvent>) -> ContainerEvent {
    match events.recv_timeout(LIMIT) {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout) => panic!("no event in time"),
        Err(RecvTimeoutError::Disconnected) => panic!("the runtime is gone"),
    }
}

/// The next event that is wanted; others are passed over.
fn wait_for<T>(events: &Receiver<ContainerEvent>, wanted: impl Fn(&ContainerEvent) -> Option<T>) -> T {
    loop {
        let event = next(events);
        if let Some(found) = wanted(&event) {
            return found;
        }
    }
}

fn started(events: &Receiver<ContainerEvent>, no: u32) {
    wait_for(events, |event| match event {
        ContainerEvent::Started { session, .. } => (*session == SessionNo(no)).then_some(()),
        ContainerEvent::StartFailed { reason, .. } => panic!("{reason}"),
        _ => None,
    });
}

fn refused(events: &Receiver<ContainerEvent>, no: u32) -> String {
    wait_for(events, |event| match event {
        ContainerEvent::StartFailed { session, reason, .. } if *session == SessionNo(no) => {
            Some(reason.clone())
        }
        _ => None,
    })
}

fn is_back(event: &ContainerEvent) -> Option<()> {
    matches!(event, ContainerEvent::Runtime { trouble: None }).then_some(())
}

#[test]
fn an_engine_that_comes_late_is_told_of_and_what_runs_there_is_taken_over() {
    let fake = Fake::new();
    let settings = fake.settings();
    std::fs::write(&settings.owner_file, format!("4711:4711 at {}\n", settings.endpoint.address)).unwrap();
    let (docker, events) = fake.runtime(short());
    let Stock::Away(reason) = docker.list().unwrap() else { panic!("nobody listens") };
    assert!(reason.contains("no engine answers") && reason.contains("--runtime process"), "{reason}");
    assert_eq!(docker.is_alive(SessionNo(1), Attempt(1)), None, "nobody can tell");
    assert_eq!(docker.owner(), FileOwner::User(4_711), "whose the files were last");
    docker.start(fake.spec(3));
    assert!(refused(&events, 3).contains("no engine answers"));
    fake.left("left1", 1, IMAGE);
    fake.left("left2", 2, "sha256:older");
    fake.listen();
    let found = wait_for(&events, |event| match event {
        ContainerEvent::Listed { found } => Some(found.clone()),
        _ => None,
    });
    assert_eq!(found, [Found { name: session(1), attempt: Some(Attempt(1)) }]);
    fake.until("one of another image is ended", |world| {
        (!world.containers.contains_key("left2")).then_some(())
    });
    wait_for(&events, is_back);
    // Comparisons go on meanwhile, and take it for nobody's in no moment.
    for _ in 0..3 {
        let asked = fake.change(|world| world.asked.len());
        fake.until("a comparison", |world| {
            let lists = world.asked[asked..].iter().filter(|it| it.starts_with("get /containers/json"));
            (lists.count() > 0).then_some(())
        });
    }
    docker.adopt(SessionNo(1), &session(1), Attempt(1));
    assert_eq!(docker.is_alive(SessionNo(1), Attempt(1)), Some(true));
    assert!(fake.change(|world| world.containers["left1"].running));
    let own = own_user().uid;
    assert_eq!(docker.owner(), FileOwner::User(if own == 0 { 10_001 } else { own }));
    let written = std::fs::read_to_string(&settings.owner_file).unwrap();
    assert!(written.ends_with(&format!("at {}\n", settings.endpoint.address)), "{written}");
}

#[test]
fn an_engine_that_hangs_at_the_start_is_not_waited_for() {
    let fake = Fake::new();
    fake.listen();
    fake.change(|world| world.hangs.insert("/version".into()));
    let (docker, events) = fake.runtime(short());
    let Stock::Away(reason) = docker.list().unwrap() else { panic!("it has not answered") };
    assert!(reason.contains("has not answered yet"), "{reason}");
    assert_eq!(docker.owner(), FileOwner::NotKnown);
    fake.change(|world| world.hangs.clear());
    wait_for(&events, |event| matches!(event, ContainerEvent::Listed { .. }).then_some(()));
    wait_for(&events, is_back);
    docker.start(fake.spec(1));
    started(&events, 1);
}

#[test]
fn a_create_that_hangs_keeps_nobody_waiting_and_is_swept_when_it_succeeds_after_all() {
    let fake = Fake::new();
    fake.listen();
    let (docker, events) = fake.runtime(short());
    assert_eq!(docker.list().unwrap(), Stock::Known(Vec::new()));
    docker.start(fake.spec(1));
    started(&events, 1);
    let first = fake.running(1);
    fake.change(|world| world.hangs.insert("create?".into()));
    // More than may be under way at once: the deadline holds for those that wait for their turn as well.
    let many = 2..=12;
    many.clone().for_each(|no| docker.start(fake.spec(no)));
    fake.until("all turns are taken", |world| {
        let creates = world.asked.iter().filter(|it| it.contains("create?")).count();
        (creates >= 2 + engine::OPERATIONS_MAX).then_some(())
    });
    docker.stop(SessionNo(1), Attempt(1), Ms(0));
    let exit = wait_for(&events, |event| match event {
        ContainerEvent::Exited { session, exit, .. } => Some((*session, *exit)),
        ContainerEvent::StartFailed { .. } => panic!("the kill waited for a create"),
        _ => None,
    });
    assert_eq!(exit, (SessionNo(1), Exit::Signal(9)));
    fake.until("it is removed", |world| (!world.containers.contains_key(&first)).then_some(()));
    let mut late = 0;
    while late < many.clone().count() {
        match next(&events) {
            ContainerEvent::StartFailed { reason, .. } => {
                assert!(reason.contains("did not create a container within 2 s"), "{reason}");
                late += 1;
            }
            ContainerEvent::Runtime { trouble } => panic!("{trouble:?}"),
            _ => {}
        }
    }
    let before = fake.change(|world| {
        world.hangs.clear();
        world.made
    });
    fake.until("they are made after all, and swept", |world| {
        (world.made >= before + engine::OPERATIONS_MAX as u64 && world.containers.is_empty()).then_some(())
    });
    docker.start(fake.spec(1));
    started(&events, 1);
}

#[test]
fn an_end_that_no_event_told_is_found_when_the_stream_begins_anew() {
    let fake = Fake::new();
    fake.listen();
    let (docker, events) = fake.runtime(Patience { compare: LIMIT * 10, ..short() });
    docker.list().unwrap();
    docker.start(fake.spec(1));
    started(&events, 1);
    let id = fake.running(1);
    let subscribed = |n: usize| {
        fake.until("it listens", |world| {
            let streams = world.asked.iter().filter(|it| it.starts_with("get /events")).count();
            let at = world.asked.iter().rposition(|it| it.starts_with("get /events"))?;
            let lists = world.asked[at..].iter().filter(|it| it.starts_with("get /containers/json")).count();
            (streams >= n && lists >= 1).then_some(())
        });
    };
    subscribed(1);
    // Once at its beginning each attempt asks by itself; that is not what finds the end here.
    let first_ask = format!("get /containers/{id}/json");
    fake.until("it has asked", |world| world.asked.iter().any(|it| it.starts_with(&first_ask)).then_some(()));
    fake.change(|world| {
        world.deaf = true;
        world.end(&id, 3);
        world.streams += 1;
    });
    let (mut away, mut end) = (None, None);
    while away.is_none() || end.is_none() {
        match next(&events) {
            ContainerEvent::Runtime { trouble: Some(trouble) } => away = away.or(Some(trouble)),
            ContainerEvent::Exited { exit, .. } => end = Some(exit),
            _ => {}
        }
    }
    assert!(away.unwrap().contains("it ended its events"));
    assert_eq!(end, Some(Exit::Code(3)));
    drop(docker);
}

#[test]
fn a_container_that_cannot_be_removed_is_its_sessions_trouble_alone() {
    let fake = Fake::new();
    fake.listen();
    fake.left("stuck", 1, "sha256:older");
    fake.change(|world| world.busy.insert("stuck".into()));
    let (docker, events) = fake.runtime(short());
    assert_eq!(docker.list().unwrap(), Stock::Known(Vec::new()));
    assert_eq!(docker.trouble(), None);
    let about =
        |event: &ContainerEvent| matches!(event, ContainerEvent::Warning { text } if text.contains("stuck"));
    wait_for(&events, |event| about(event).then_some(()));
    docker.start(fake.spec(2));
    started(&events, 2);
    docker.start(fake.spec(1));
    let reason = refused(&events, 1);
    assert!(reason.contains("device or resource busy"), "{reason}");
    let asked = fake.change(|world| world.asked.len());
    fake.until("it is tried again", |world| {
        world.asked[asked..].iter().any(|it| it.starts_with("delete /containers/stuck")).then_some(())
    });
    assert_eq!(docker.trouble(), None);
    fake.change(|world| world.busy.clear());
    fake.until("it is gone", |world| (!world.containers.contains_key("stuck")).then_some(()));
    docker.start(fake.spec(1));
    started(&events, 1);
    drop(docker);
    assert!(!events.iter().any(|event| about(&event)), "said more than once");
}

#[test]
fn containers_are_made_of_the_images_id_and_what_the_engine_cannot_do_is_said_once() {
    let fake = Fake::new();
    fake.listen();
    let (docker, events) = fake.runtime(short());
    docker.list().unwrap();
    for no in 1..=2 {
        docker.start(fake.spec(no));
    }
    let mut warnings = Vec::new();
    let mut begun = 0;
    while begun < 2 {
        match next(&events) {
            ContainerEvent::Warning { text } => warnings.push(text),
            ContainerEvent::Started { .. } => begun += 1,
            ContainerEvent::StartFailed { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
    let of = |what: &str| warnings.iter().filter(|text| text.contains(what)).count();
    assert_eq!((of("cannot limit pids"), of("no swap limit here")), (1, 1), "{warnings:?}");
    fake.change(|world| {
        let agents: Vec<&Value> =
            world.bodies.iter().filter(|it| it["Labels"][LABEL_SESSION].is_string()).collect();
        assert_eq!(agents.len(), 2);
        for body in agents {
            assert_eq!(body["Image"], IMAGE);
            assert_eq!(body["Labels"][LABEL_BUILD], IMAGE);
            assert_eq!(body["Labels"][body::LABEL_IMAGE], "agent:latest");
        }
        // Another release of bollard may name a version: then it must be one that the engine has.
        assert!(world.asked.iter().all(|line| !line.contains("/v1.")), "{:?}", world.asked);
    });
    drop(docker);
}
