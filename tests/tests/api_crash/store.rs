//! `kill -9` of a process that has the embedded store open, at random moments: while it opens the file, while its clients write,
//! while the file grows. A checker follows what the process said it was doing and what it was told, and compares.
//!
//! What a kill leaves is what the kernel was given; whether the disk has it, only a loss of power would show.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use anyhow::{Context as _, Result, bail, ensure};
use futures::executor::block_on;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_controller::store::{
    Embedded, Encoded, Expect, Meta, Object, Operation, Revision, Store, StoreError, Write,
};
use weft_lab::random::{Random, seed};

/// Kills of an ordinary run, and of a long one.
const KILLS: usize = 60;
const LONG: usize = 3000;
/// The longest that the store is left to its clients, and to opening.
const AT_WORK: Duration = Duration::from_millis(80);
const OPENING: Duration = Duration::from_millis(25);
/// How long a process may take to open the store.
const PATIENCE: Duration = Duration::from_mins(1);
/// Clients that write at the same time.
const CLIENTS: usize = 12;
/// Keys that each of them has to itself, and that all share.
const OWN: usize = 6;
const SHARED: usize = 4;
const RESOURCES: [&str; 2] = ["configmaps", "pods"];
/// What the process that is to be killed finds in its environment: directory, seed, round, revision to resume a watch from.
const TASK: &str = "WEFT_CRASH_TASK";

#[test]
fn what_the_store_acknowledged_survives_kill_9_at_any_moment() -> Result<()> {
    crash_over_and_over(
        "store::what_the_store_acknowledged_survives_kill_9_at_any_moment",
        KILLS,
    )
}

#[test]
#[ignore = "long: thousands of crashes"]
fn what_the_store_acknowledged_survives_kill_9_at_any_moment_at_length() -> Result<()> {
    crash_over_and_over(
        "store::what_the_store_acknowledged_survives_kill_9_at_any_moment_at_length",
        LONG,
    )
}

fn crash_over_and_over(test: &str, kills: usize) -> Result<()> {
    if let Ok(task) = env::var(TASK) {
        victim(&task);
    }
    let seed = seed("WEFT_CRASH_SEED");
    let directory = TempDir::with_prefix("weft-store-crash-")?;
    let mut random = Random::new(seed);
    let mut checker = Checker::default();
    for round in 0..=kills {
        let task = format!("{} {seed} {round} {}", directory.path().display(), checker.resume);
        // Now and then before it has opened the file; the last one is only asked what is there.
        let early = round < kills && random.below(8) == 0;
        let limit = if early { OPENING } else { AT_WORK };
        let delay = Duration::from_micros(random.draw() % u64::try_from(limit.as_micros())?);
        let last = round == kills;
        let said = run_and_kill(test, &task, (!last).then_some(delay), early)?;
        checker
            .read(&said)
            .with_context(|| format!("round {round} of WEFT_CRASH_SEED={seed}"))?;
    }
    println!(
        "{kills} kills: {} transactions acknowledged, {} cut short, of which {} were done; revision {}",
        checker.acknowledged, checker.cut_short, checker.done_unheard, checker.top
    );
    ensure!(checker.acknowledged > kills, "hardly anything was written");
    Ok(())
}

/// Runs the victim and kills it so long after its start, or after it has opened the store; yields all it said.
fn run_and_kill(test: &str, task: &str, delay: Option<Duration>, early: bool) -> Result<Vec<String>> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(TASK, task)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = child.stderr.take().context("a pipe")?;
    let (send, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let mut said = Vec::new();
    let start = Instant::now();
    while !early && said.last().is_none_or(|line| line != "open") {
        match lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            Ok(line) => said.push(line),
            Err(_) => break,
        }
    }
    let opened = Instant::now();
    let delay = delay.unwrap_or_default();
    while let Ok(line) = lines.recv_timeout(delay.saturating_sub(opened.elapsed())) {
        said.push(line);
    }
    child.kill()?;
    let status = child.wait()?;
    said.extend(lines.iter());
    let _ = reader.join();
    ensure!(
        status.signal() == Some(9),
        "it ended by itself, {status}:\n{}",
        said.join("\n")
    );
    Ok(said)
}

/// The process that is killed: says what is in the store, and writes until its end.
fn victim(task: &str) -> ! {
    let mut words = task.split_whitespace();
    let mut word = || words.next().expect("a word");
    let (directory, seed, round, resume) = (word(), word(), word(), word());
    let (seed, resume): (u64, Revision) =
        (seed.parse().expect("a seed"), resume.parse().expect("a revision"));
    let store = Embedded::open(&Path::new(directory).join("store"), index).expect("open the store");
    say(&format!("revision {}", store.revision()));
    for resource in RESOURCES {
        for object in store.list(resource, "").items {
            let (key, revision) = (&object.meta().name, object.revision());
            say(&format!("has {resource} {key} {revision} {}", value(&object)));
        }
    }
    match store.watch(RESOURCES[0], resume) {
        Ok(_) => say("resumes"),
        Err(StoreError::Expired { .. }) => say("expired"),
        Err(error) => panic!("resume: {error}"),
    }
    let watches = RESOURCES.map(|resource| {
        let from = store.revision();
        say(&format!("watches {resource} {from}"));
        (resource, store.watch(resource, from).expect("a watch from now"))
    });
    say("open");
    thread::scope(|scope| {
        for (resource, mut watch) in watches {
            scope.spawn(move || {
                loop {
                    for event in block_on(watch.next()).expect("a watcher that keeps up") {
                        let (key, revision) = (&event.object.meta().name, event.revision());
                        let state = if event.deleted {
                            "-".to_owned()
                        } else {
                            value(&event.object)
                        };
                        say(&format!("saw {resource} {key} {revision} {state}"));
                    }
                }
            });
        }
        for client in 0..CLIENTS {
            let (store, seed) = (&store, seed ^ ((client as u64) << 32));
            scope.spawn(move || write(store, client, seed, round));
        }
    });
    unreachable!("clients write until they are killed")
}

/// One line at once, so that lines of several threads do not mix and none is there by halves.
fn say(line: &str) {
    io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .expect("somebody listens");
}

fn index(_: &str, text: &[u8]) -> Result<Meta, serde_json::Error> {
    serde_json::from_slice(text).map(|object| named(&object))
}

fn named(object: &Value) -> Meta {
    Meta {
        name: object["metadata"]["name"].as_str().unwrap_or_default().into(),
        ..Meta::default()
    }
}

/// The value of an object, which stands in it twice, around a filler of a length that is given.
fn value(object: &Object) -> String {
    let data = &object.value()["data"];
    let filler = data["filler"].as_str().unwrap_or_default();
    let length = filler.len().to_string();
    let whole = data["first"] == data["second"] && data["length"] == length.as_str();
    match data["first"].as_str() {
        Some(value) if whole => value.to_owned(),
        _ => "torn".to_owned(),
    }
}

/// A client: transactions of several keys of its own, and of one key that all share.
fn write(store: &Embedded, client: usize, seed: u64, round: &str) {
    let mut random = Random::new(seed ^ round.parse::<u64>().unwrap_or_default());
    for number in 0.. {
        let resource = *random.pick(&RESOURCES);
        let keys: BTreeSet<String> = if random.below(3) == 0 {
            [format!("shared-{}", random.below(SHARED))].into()
        } else {
            let many = 1 + random.below(3);
            (0..many)
                .map(|_| format!("own-{client}-{}", random.below(OWN)))
                .collect()
        };
        let mut line = format!("tries {client} {number} {resource}");
        let mut writes = Vec::new();
        for (place, key) in keys.into_iter().enumerate() {
            let found = store.get(resource, &key).map(|object| object.revision());
            let expect = found.map_or(Expect::Absent, Expect::Revision);
            let removes = found.is_some() && random.below(4) == 0;
            let value = format!("{round}.{client}.{number}.{place}");
            let expected = found.map_or_else(|| "-".to_owned(), |revision| revision.to_string());
            line = format!("{line} {key} {expected} {}", if removes { "-" } else { &value });
            // Most are small; some make the file grow by much.
            let longest = if random.below(50) == 0 { 200_000 } else { 1500 };
            let length = random.below(longest);
            let operation = if removes {
                Operation::Delete
            } else {
                let object = json!({ "metadata": { "name": key }, "data": { "first": value, "length": length.to_string(),
                    "filler": "x".repeat(length), "second": value } });
                Operation::Put(Encoded::new(&object, named(&object)))
            };
            writes.push(Write {
                resource,
                key,
                expect,
                operation,
            });
        }
        say(&line);
        match block_on(store.commit(writes)) {
            Ok(objects) => {
                let revisions: Vec<_> = objects
                    .iter()
                    .map(|object| object.revision().to_string())
                    .collect();
                say(&format!("done {client} {number} {}", revisions.join(" ")));
            }
            Err(StoreError::Conflict { .. }) => say(&format!("conflict {client} {number}")),
            Err(error) => panic!("a commit failed: {error}"),
        }
    }
}

type Place = (String, String);

/// What is under a key: the value, if there is one, and the revision since when.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct State {
    revision: Revision,
    value: Option<String>,
}

#[derive(Debug)]
struct Tried {
    place: Place,
    expected: Option<Revision>,
    value: Option<String>,
    /// A watcher was shown it.
    seen: bool,
}

/// A transaction by client and number.
type Name = (usize, usize);

#[derive(Default)]
struct Checker {
    /// What must be there.
    known: BTreeMap<Place, State>,
    /// Transactions of which nothing was heard since they were tried.
    pending: BTreeMap<Name, Vec<Tried>>,
    /// Revisions that were given out, ever.
    used: BTreeSet<Revision>,
    /// The highest of them.
    top: Revision,
    /// From where the next watcher tries to go on.
    resume: Revision,
    acknowledged: usize,
    cut_short: usize,
    done_unheard: usize,
}

impl Checker {
    /// Follows what a process said.
    fn read(&mut self, said: &[String]) -> Result<()> {
        let mut found = BTreeMap::new();
        let (mut revision, mut resumes, mut opened) = (0, false, false);
        let mut acknowledged: Vec<(Revision, Tried)> = Vec::new();
        let mut last_of_client = BTreeMap::new();
        let mut watched: BTreeMap<String, Vec<Revision>> = BTreeMap::new();
        let mut seen: BTreeMap<Revision, (Place, Option<String>)> = BTreeMap::new();
        for line in said {
            let words: Vec<&str> = line.split_whitespace().collect();
            let state = |text: &str| (text != "-").then(|| text.to_owned());
            match words[..] {
                ["revision", number] => revision = number.parse()?,
                ["has", resource, key, revision, value] => {
                    let state = State {
                        revision: revision.parse()?,
                        value: state(value),
                    };
                    found.insert((resource.to_owned(), key.to_owned()), state);
                }
                [word @ ("resumes" | "expired")] => resumes = word == "resumes",
                ["watches", resource, from] => {
                    watched.insert(resource.to_owned(), vec![from.parse()?]);
                }
                ["open"] => {
                    self.settle(revision, &found)?;
                    self.check_resumption(revision, resumes)?;
                    opened = true;
                }
                ["tries", client, number, resource, ref writes @ ..] => {
                    let writes = writes.chunks(3).map(|write| {
                        Ok(Tried {
                            place: (resource.to_owned(), write[0].to_owned()),
                            expected: state(write[1]).map(|text| text.parse()).transpose()?,
                            value: state(write[2]),
                            seen: false,
                        })
                    });
                    let writes: Vec<Tried> = writes.collect::<Result<_>>()?;
                    self.pending.insert((client.parse()?, number.parse()?), writes);
                }
                ["done", client, number, ref revisions @ ..] => {
                    let name = (client.parse()?, number.parse()?);
                    let writes = self.pending.remove(&name).context("nobody tried that")?;
                    ensure!(
                        writes.len() == revisions.len(),
                        "{line}: a revision for each of {writes:?}"
                    );
                    self.acknowledged += 1;
                    for (write, given) in writes.into_iter().zip(revisions) {
                        let given: Revision = given.parse()?;
                        let before = last_of_client.insert(name.0, given).unwrap_or(revision);
                        ensure!(given > before, "{line}: revisions went back from {before}");
                        acknowledged.push((given, write));
                    }
                }
                ["conflict", client, number] => {
                    let writes = self.pending.remove(&(client.parse()?, number.parse()?));
                    let writes = writes.context("nobody tried that")?;
                    ensure!(
                        writes.iter().all(|write| write.place.1.starts_with("shared")),
                        "{line}: a conflict over {writes:?}, which nobody else writes"
                    );
                }
                ["saw", resource, key, at, value] => {
                    let at = at.parse()?;
                    let of_resource = watched.get_mut(resource).context("nobody watches that")?;
                    let before = of_resource.last().copied().unwrap_or_default();
                    ensure!(at > before, "{line}: came after {before}");
                    of_resource.push(at);
                    seen.insert(at, ((resource.to_owned(), key.to_owned()), state(value)));
                }
                // The test harness says a word or two itself.
                _ if !opened && self.pending.is_empty() && found.is_empty() && revision == 0 => {}
                _ => bail!("{line}"),
            }
        }
        if opened {
            self.check_history(acknowledged, &watched, seen)?;
            self.cut_short += self.pending.len();
        }
        Ok(())
    }

    /// Compares what a process found with what must be there; what is uncertain is certain from then on.
    fn settle(&mut self, revision: Revision, found: &BTreeMap<Place, State>) -> Result<()> {
        ensure!(
            revision >= self.top,
            "the revision went back from {} to {revision}",
            self.top
        );
        let mut since = BTreeSet::new();
        for (place, state) in found {
            ensure!(
                state.value.as_deref() != Some("torn"),
                "{place:?} is there by halves"
            );
            ensure!(since.insert(state.revision), "{state:?} shares its revision");
            ensure!(state.revision <= revision, "{state:?} is from the future");
        }
        let uncertain = |place: &Place| {
            let all = self.pending.values().flatten();
            all.filter(|write| write.place == *place).collect::<Vec<_>>()
        };
        let places: BTreeSet<&Place> = self.known.keys().chain(found.keys()).collect();
        let before = |place: &Place| self.known.get(place).cloned().unwrap_or_default();
        for place in places {
            let (known, now) = (before(place), found.get(place));
            let same = now.map_or(known.value.is_none(), |now| *now == known);
            let explained = uncertain(place).into_iter().any(|write| match now {
                None => write.value.is_none(),
                Some(now) => {
                    write.value == now.value
                        && now.revision > known.revision
                        && !self.used.contains(&now.revision)
                }
            });
            ensure!(
                same || explained,
                "{place:?}: {known:?} was acknowledged, {now:?} is there"
            );
        }
        for (name, writes) in &self.pending {
            let is_done = |write: &&Tried| {
                let now = found.get(&write.place);
                let shows = match &write.value {
                    Some(value) => now.is_some_and(|now| now.value.as_ref() == Some(value)),
                    None => now.is_none() && before(&write.place).value.is_some(),
                };
                write.seen || shows
            };
            let done = writes.iter().filter(is_done).count();
            ensure!(
                done == 0 || done == writes.len(),
                "{done} of the {} writes of {name:?} were done: {writes:?}",
                writes.len()
            );
            self.done_unheard += usize::from(done > 0);
        }
        let gone = self.known.iter().filter(|(place, _)| !found.contains_key(*place));
        let gone: Vec<(Place, State)> = gone
            .map(|(place, state)| {
                let revision = state.revision;
                (
                    place.clone(),
                    State {
                        revision,
                        value: None,
                    },
                )
            })
            .collect();
        self.known = found.clone();
        self.known.extend(gone);
        self.pending.clear();
        self.used.extend(since);
        self.top = revision;
        Ok(())
    }

    /// A watcher may go on from where it was only if it misses nothing by that.
    fn check_resumption(&self, revision: Revision, resumes: bool) -> Result<()> {
        let of_resource = self
            .known
            .iter()
            .filter(|((resource, _), _)| resource == RESOURCES[0]);
        let last = of_resource
            .map(|(_, state)| state.revision)
            .max()
            .unwrap_or_default();
        ensure!(
            !resumes || last <= self.resume,
            "a watch resumed after {}, and misses revision {last}",
            self.resume
        );
        ensure!(
            resumes || self.resume < revision,
            "a watch could not resume after the last revision, {revision}"
        );
        Ok(())
    }

    /// Replays what was acknowledged in the order of its revisions, and compares it with what watchers saw.
    fn check_history(
        &mut self,
        mut acknowledged: Vec<(Revision, Tried)>,
        watched: &BTreeMap<String, Vec<Revision>>,
        mut seen: BTreeMap<Revision, (Place, Option<String>)>,
    ) -> Result<()> {
        acknowledged.sort_by_key(|(revision, _)| *revision);
        for (revision, write) in acknowledged {
            ensure!(
                self.used.insert(revision),
                "revision {revision} was given out twice"
            );
            let before = self.known.get(&write.place).cloned().unwrap_or_default();
            let there = before.value.is_some().then_some(before.revision);
            // What was done without being heard of may have come in between.
            let mut unheard = self.pending.values().flatten();
            let unheard = unheard.any(|other| other.place == write.place);
            ensure!(
                write.expected == there || unheard,
                "{write:?} was done at {revision} over {before:?}"
            );
            let resource = &write.place.0;
            let last_seen = watched.get(resource).and_then(|all| all.last());
            match seen.remove(&revision) {
                Some(shown) => ensure!(
                    shown == (write.place.clone(), write.value.clone()),
                    "{write:?} was seen as {shown:?}"
                ),
                None => ensure!(
                    last_seen.is_none_or(|last| *last < revision),
                    "{write:?} at {revision} was never seen, and {last_seen:?} was"
                ),
            }
            self.top = revision;
            let value = write.value;
            self.known.insert(write.place, State { revision, value });
        }
        // What was visible to a watcher was durable, even if its writer never heard.
        for (revision, (place, value)) in seen {
            let mut unheard = self.pending.values_mut().flatten();
            let write = unheard.find(|write| write.place == place && write.value == value && !write.seen);
            write
                .with_context(|| format!("nobody wrote {value:?} to {place:?}, seen at {revision}"))?
                .seen = true;
            ensure!(
                self.used.insert(revision),
                "revision {revision} was given out twice"
            );
            self.top = self.top.max(revision);
            let known = self.known.entry(place).or_default();
            if known.revision < revision {
                *known = State { revision, value };
            }
        }
        let last = watched.get(RESOURCES[0]).and_then(|all| all.last());
        self.resume = last.copied().unwrap_or(self.resume);
        Ok(())
    }
}
