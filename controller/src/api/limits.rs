//! How much the server takes on at a time, and from one client: beyond that it says 429 and when to come back.
//!
//! Requests wait a little for a seat, so that a burst costs time and not failures. Users and service accounts get most of the
//! seats, but not all: nodes and the control plane's own get theirs even when a workload runs wild. Each client has its own
//! bounds besides. The control plane's parts within the process are never turned away, and masters are held to the server's
//! bounds alone: they are what brings order back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::status::ApiError;
use crate::auth::{Identity, MASTERS, NODES};

/// Clients that are remembered before those that are idle are forgotten.
const CLIENTS: usize = 4096;

/// Limits of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body.
    pub body_bytes: usize,
    /// How long a client may take to send it.
    pub body_timeout: Duration,
    /// Requests in flight, watches apart.
    pub requests: usize,
    /// How many of those may be of users and service accounts.
    pub workload_requests: usize,
    /// Requests of one user in flight.
    pub client_requests: usize,
    /// Requests of one user a second in the long run; nodes count as users.
    pub client_rate: f64,
    /// Requests of one user that may come at once.
    pub client_burst: f64,
    /// Requests that may wait for a seat.
    pub waiting: usize,
    /// How long a request waits for a seat.
    pub wait: Duration,
    /// Watches.
    pub watches: usize,
    /// Watches of one user.
    pub client_watches: usize,
    /// How long a pod stays on a node that is lost, unless it says otherwise.
    pub toleration_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // As in Kubernetes.
            body_bytes: 3 << 20,
            body_timeout: Duration::from_secs(30),
            requests: 600,
            workload_requests: 400,
            client_requests: 200,
            // A node that starts a hundred pods at once stays below.
            client_rate: 500.0,
            client_burst: 2000.0,
            waiting: 2048,
            wait: Duration::from_secs(1),
            // Each costs a task and a socket; a node needs a handful.
            watches: 16_384,
            client_watches: 1024,
            toleration_seconds: 300,
        }
    }
}

/// Whose bounds a request is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// The server's alone.
    Masters,
    /// The server's and the client's own.
    System,
    /// Those of all workloads, too.
    Workload,
}

impl Level {
    fn of(identity: &Identity) -> Self {
        if identity.is_in(MASTERS) {
            Self::Masters
        } else if identity.is_in(NODES) {
            Self::System
        } else {
            Self::Workload
        }
    }
}

/// What one client has going.
#[derive(Debug)]
struct Client {
    requests: usize,
    watches: usize,
    allowance: f64,
    counted: Instant,
}

/// The seats of the server.
#[derive(Debug)]
pub(crate) struct Seats {
    limits: Limits,
    requests: Arc<Semaphore>,
    workloads: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    waiting: AtomicUsize,
    clients: Mutex<HashMap<Box<str>, Client>>,
}

/// What a client may have many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Watch,
}

/// A place in the server for as long as it is held.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    client: Option<(Box<str>, Kind)>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((name, kind)) = &self.client
            && let Some(client) = self.seats.clients().get_mut(name)
        {
            match kind {
                Kind::Request => client.requests -= 1,
                Kind::Watch => client.watches -= 1,
            }
        }
    }
}

impl Seats {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            requests: Arc::new(Semaphore::new(limits.requests)),
            workloads: Arc::new(Semaphore::new(limits.workload_requests)),
            watches: Arc::new(Semaphore::new(limits.watches)),
            waiting: AtomicUsize::new(0),
            clients: Mutex::default(),
        })
    }

    /// How many watches are open.
    pub(crate) fn open_watches(&self) -> usize {
        self.limits
            .watches
            .saturating_sub(self.watches.available_permits())
    }

    /// A place for a request.
    ///
    /// # Errors
    /// 429.
    pub(crate) async fn request(self: &Arc<Self>, identity: &Identity) -> Result<Seat, ApiError> {
        let level = Level::of(identity);
        let mut seat = self.of_client(identity, level, Kind::Request, Instant::now())?;
        let pools: &[&Arc<Semaphore>] = match level {
            Level::Masters | Level::System => &[&self.requests],
            // Its own pool first: it must not sit on the common seats while it waits.
            Level::Workload => &[&self.workloads, &self.requests],
        };
        for pool in pools {
            seat.permits.push(self.permit(pool).await?);
        }
        Ok(seat)
    }

    /// A place for a watch.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn watch(self: &Arc<Self>, identity: &Identity) -> Result<Seat, ApiError> {
        let mut seat = self.of_client(identity, Level::of(identity), Kind::Watch, Instant::now())?;
        let permit = Arc::clone(&self.watches)
            .try_acquire_owned()
            .map_err(|_| ApiError::too_many_requests("too many watches, please try again later", 5))?;
        seat.permits.push(permit);
        Ok(seat)
    }

    async fn permit(&self, pool: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(permit) = Arc::clone(pool).try_acquire_owned() {
            return Ok(permit);
        }
        let refused = || ApiError::too_many_requests("too many requests, please try again later", 1);
        // Whoever is dropped while waiting gives the place in the queue back all the same.
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.waiting {
            return Err(refused());
        }
        match timeout(self.limits.wait, Arc::clone(pool).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(refused()),
        }
    }

    /// Counts something of a client, unless it has too much of it.
    fn of_client(
        self: &Arc<Self>,
        identity: &Identity,
        level: Level,
        kind: Kind,
        now: Instant,
    ) -> Result<Seat, ApiError> {
        let mut seat = Seat {
            seats: Arc::clone(self),
            client: None,
            permits: Vec::new(),
        };
        if level == Level::Masters {
            return Ok(seat);
        }
        let limits = &self.limits;
        let mut clients = self.clients();
        if clients.len() >= CLIENTS && !clients.contains_key(identity.user.as_str()) {
            clients.retain(|_, client| {
                let idle = now.duration_since(client.counted).as_secs_f64() * limits.client_rate;
                client.requests > 0 || client.watches > 0 || client.allowance + idle < limits.client_burst
            });
        }
        let client = clients
            .entry(identity.user.as_str().into())
            .or_insert_with(|| Client {
                requests: 0,
                watches: 0,
                allowance: limits.client_burst,
                counted: now,
            });
        let earned = now.duration_since(client.counted).as_secs_f64() * limits.client_rate;
        client.allowance = (client.allowance + earned).min(limits.client_burst);
        client.counted = now;
        if client.allowance < 1.0 {
            // At one a second and more the next is due by then.
            let text = format!("too many requests of {:?}, please try again later", identity.user);
            return Err(ApiError::too_many_requests(text, 1));
        }
        client.allowance -= 1.0;
        let (count, most, what) = match kind {
            Kind::Request => (&mut client.requests, limits.client_requests, "requests"),
            Kind::Watch => (&mut client.watches, limits.client_watches, "watches"),
        };
        if *count >= most {
            let text = format!(
                "too many {what} of {:?} at a time, please try again later",
                identity.user
            );
            return Err(ApiError::too_many_requests(text, 1));
        }
        *count += 1;
        seat.client = Some((identity.user.as_str().into(), kind));
        Ok(seat)
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            requests: 4,
            workload_requests: 3,
            client_requests: 2,
            client_rate: 10.0,
            client_burst: 5.0,
            waiting: 1,
            wait: Duration::from_millis(1),
            watches: 3,
            client_watches: 1,
            ..Limits::default()
        }
    }

    fn user(name: &str) -> Identity {
        Identity::known(name, Vec::new())
    }

    #[tokio::test]
    async fn a_workload_run_wild_leaves_seats_for_others() {
        let seats = Seats::new(limits());
        let first = seats.request(&user("a")).await.unwrap();
        let _second = seats.request(&user("a")).await.unwrap();
        let refused = seats.request(&user("a")).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.details["retryAfterSeconds"].as_u64()),
            (429, Some(1))
        );
        let _third = seats.request(&user("b")).await.unwrap();
        assert_eq!(seats.request(&user("c")).await.unwrap_err().code, 429);
        let node = Identity::known("system:node:n", vec![NODES.to_owned()]);
        let of_node = seats.request(&node).await.unwrap();
        assert_eq!(
            seats.request(&Identity::control_plane()).await.unwrap_err().code,
            429
        );
        drop(of_node);
        drop(first);
        seats.request(&user("c")).await.unwrap();
    }

    #[tokio::test]
    async fn who_asks_too_often_is_told_when_to_come_back() {
        let seats = Seats::new(limits());
        let start = Instant::now();
        let ask = |at: Duration| seats.of_client(&user("a"), Level::Workload, Kind::Request, start + at);
        for _ in 0..5 {
            drop(ask(Duration::ZERO).unwrap());
        }
        assert_eq!(ask(Duration::ZERO).unwrap_err().code, 429);
        assert!(ask(Duration::from_millis(100)).is_ok());
        assert!(ask(Duration::from_millis(110)).is_err());
        let masters = Identity::control_plane();
        for _ in 0..10 {
            assert!(
                seats
                    .of_client(&masters, Level::Masters, Kind::Request, start)
                    .is_ok()
            );
        }
    }

    #[tokio::test]
    async fn watches_are_counted_apart() {
        let seats = Seats::new(limits());
        let held = seats.watch(&user("a")).unwrap();
        assert_eq!(seats.watch(&user("a")).unwrap_err().code, 429);
        seats.request(&user("a")).await.unwrap();
        let others = [seats.watch(&user("b")).unwrap(), seats.watch(&user("c")).unwrap()];
        assert_eq!(seats.open_watches(), 3);
        assert_eq!(seats.watch(&user("d")).unwrap_err().code, 429);
        drop((held, others));
        assert_eq!(seats.open_watches(), 0);
        seats.watch(&user("a")).unwrap();
    }

    #[test]
    fn idle_clients_are_forgotten() {
        let seats = Seats::new(limits());
        let now = Instant::now();
        for number in 0..CLIENTS {
            let name = user(&number.to_string());
            drop(
                seats
                    .of_client(&name, Level::Workload, Kind::Request, now)
                    .unwrap(),
            );
        }
        let later = now + Duration::from_secs(10);
        drop(
            seats
                .of_client(&user("x"), Level::Workload, Kind::Request, later)
                .unwrap(),
        );
        assert_eq!(seats.clients().len(), 1);
    }
}
