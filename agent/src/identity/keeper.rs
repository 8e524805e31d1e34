//! Owns the identity while the agent runs: renews it in time, and takes over whom the control plane says to believe.
//! Never touches the link: connections that are open stay so, later ones read what is stored.

use std::time::{Duration, SystemTime};

use berth_proto::node::v1::{self as wire, node_service_client::NodeServiceClient};
use rand::Rng as _;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Identity, IdentityError, IdentityFiles, Source, issued, verify::moment};
use crate::{
    link::{Connection, LinkError, Target},
    sys::Chain,
};

/// A certificate is renewed after this share of its life, less some jitter: nodes that joined together shall not all
/// come back together.
const RENEW_AFTER: f64 = 2.0 / 3.0;
const RENEW_JITTER: f64 = 0.06;
/// With so little of its life left, that it was not renewed is a condition of the node.
const WORRY_BELOW: f64 = 0.1;
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LAST: Duration = Duration::from_secs(3600);
/// Retries come at least so often in what is left of a certificate's life.
const RETRIES_IN_REST: u32 = 10;
/// However often the control plane asks.
const RENEW_SPACING: Duration = Duration::from_secs(1);
/// The clock may be set, and the files changed: the plan is made anew so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);
const LOOK_MIN: Duration = Duration::from_millis(100);

/// The identity as others may want to know it.
#[derive(Clone, Debug)]
pub struct IdentityState {
    /// When the node's certificate ends.
    pub not_after: OffsetDateTime,
    /// What an operator should know, and do.
    pub problem: Option<String>,
}

/// What the control plane said on a link of whom to believe.
#[derive(Clone, Debug)]
pub struct TrustOrder {
    pub trust: wire::Trust,
    /// The authority by which the control plane proved itself on that link.
    pub proved_by: CertificateDer<'static>,
}

#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("connect for it")]
    Connect { source: LinkError },
    #[error("the control plane refused")]
    Refused { source: Box<tonic::Status> },
    #[error("no answer for {} s", CALL_TIMEOUT.as_secs())]
    Slow,
    #[error("the control plane cannot be reached by the authorities that it names: they are not taken over")]
    LocksOut { source: LinkError },
    #[error("write the identity")]
    Write { source: tokio::task::JoinError },
    #[error("the renewed certificate is stored, but the control plane does not know that")]
    Unconfirmed { source: Box<KeeperError> },
}

/// Keeps the identity of one agent.
#[derive(Debug)]
pub struct Keeper {
    target: Target,
    orders: mpsc::Receiver<TrustOrder>,
    state: watch::Sender<IdentityState>,
    /// When the certificate with these contents is to be renewed.
    plan: Option<(String, SystemTime)>,
    retry: Option<(Instant, Duration)>,
    renewed: Option<Instant>,
    /// The control plane does not know that the stored certificate has arrived: it is renewed once more.
    unconfirmed: bool,
    renewal_failure: Option<String>,
    trust_failure: Option<String>,
}

impl Keeper {
    /// A keeper of `identity`, which `target` was made with.
    pub fn new(
        target: Target,
        identity: &Identity,
        orders: mpsc::Receiver<TrustOrder>,
    ) -> (Self, watch::Receiver<IdentityState>) {
        let (state, seen) = watch::channel(IdentityState {
            not_after: identity.not_after,
            problem: None,
        });
        let keeper = Self {
            target,
            orders,
            state,
            plan: None,
            retry: None,
            renewed: None,
            unconfirmed: false,
            renewal_failure: None,
            trust_failure: None,
        };
        (keeper, seen)
    }

    /// Runs until `stop`, or until nobody can give orders any more.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = self.look();
            tokio::select! {
                () = stop.cancelled() => return,
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            if self.is_due() {
                self.renew().await;
            }
        }
    }

    /// Publishes how the identity is, and says how long nothing has to be done.
    fn look(&mut self) -> Duration {
        let identity = match self.target.source.load_of(&self.target.node) {
            Ok(identity) => identity,
            Err(error) => {
                let problem = Some(format!("identity: {}", Chain(&error)));
                self.state.send_modify(|state| state.problem = problem);
                return LOOK_INTERVAL.min(Duration::from_secs(60));
            }
        };
        let problem = self.problem(&identity);
        self.state.send_if_modified(|state| {
            let changed = state.problem != problem || state.not_after != identity.not_after;
            if changed && let Some(problem) = &problem {
                tracing::error!(%problem, "this node's identity");
            }
            *state = IdentityState {
                not_after: identity.not_after,
                problem,
            };
            changed
        });
        if matches!(self.target.source, Source::Configured { .. }) {
            return LOOK_INTERVAL;
        }
        if self
            .plan
            .as_ref()
            .is_none_or(|(pem, _)| *pem != identity.certificate_pem)
        {
            let share = RENEW_AFTER - rand::rng().random_range(0.0..RENEW_JITTER);
            let due = match self.unconfirmed {
                true => SystemTime::UNIX_EPOCH,
                false => begin(&identity) + life(&identity).mul_f64(share),
            };
            self.plan = Some((identity.certificate_pem.clone(), due));
        }
        let until_due = self.plan.as_ref().map_or(Duration::ZERO, |(_, due)| {
            due.duration_since(SystemTime::now()).unwrap_or_default()
        });
        let until_retry = self.retry.map_or(Duration::ZERO, |(at, _)| {
            at.saturating_duration_since(Instant::now())
        });
        // Often enough to tell in time that the end comes near.
        let until_worry = life(&identity).mul_f64(WORRY_BELOW).max(LOOK_MIN);
        until_due.max(until_retry).min(LOOK_INTERVAL).min(until_worry)
    }

    fn is_due(&self) -> bool {
        let retry = self.retry.is_none_or(|(at, _)| at <= Instant::now());
        retry
            && self
                .plan
                .as_ref()
                .is_some_and(|(_, due)| *due <= SystemTime::now())
    }

    fn problem(&self, identity: &Identity) -> Option<String> {
        let why = self
            .renewal_failure
            .as_deref()
            .unwrap_or("it is not renewed here");
        let end = moment(identity.not_after);
        let left = SystemTime::from(identity.not_after).duration_since(SystemTime::now());
        match left {
            Err(_) => Some(format!(
                "identity: this node's certificate expired at {end} ({why}): tasks go on, but the control plane no longer \
                 knows this node. Get a token with `berth token create` and run `berth-agent register --force` with what \
                 it prints, then restart the agent"
            )),
            Ok(left) if left < life(identity).mul_f64(WORRY_BELOW) => Some(format!(
                "identity: this node's certificate ends at {end} and could not be renewed: {why}"
            )),
            Ok(_) => self.trust_failure.clone(),
        }
    }

    /// Takes over whom to believe, and renews if that is asked for.
    async fn obey(&mut self, order: TrustOrder) {
        let renew = order.trust.renew;
        self.trust_failure = match self.believe(order).await {
            Ok(()) => None,
            Err(error) => Some(format!("identity: whom to believe: {}", Chain(&error))),
        };
        if renew && let Some((_, due)) = &mut self.plan {
            *due = SystemTime::UNIX_EPOCH;
            // What kept it from being renewed may be over, now that it is asked for.
            self.retry = self
                .renewed
                .map(|at| at + RENEW_SPACING)
                .filter(|at| *at > Instant::now())
                .map(|at| (at, RETRY_FIRST));
        }
    }

    async fn believe(&self, order: TrustOrder) -> Result<(), KeeperError> {
        let authorities = issued::authorities(order.trust.authority_der)?;
        let identity = self.target.source.load_of(&self.target.node)?;
        if same(&authorities, &identity.authorities) {
            return Ok(());
        }
        let Source::Own(files) = &self.target.source else {
            let problem = "it names other authorities than the configured file has: replace that file".into();
            return Err(IdentityError::Answer { problem }.into());
        };
        self.is_reachable_by(&authorities, &order.proved_by, &identity)
            .await?;
        let (files, stored) = (files.clone(), authorities.clone());
        write(move || {
            let lock = files.lock()?;
            unchanged(&files, &identity)?;
            files.store_authorities(&lock, &stored)
        })
        .await?;
        tracing::info!(
            authorities = authorities.len(),
            "authorities to believe are stored"
        );
        Ok(())
    }

    /// A bundle without the authority of the present connection is taken over only when a new connection shows that the
    /// control plane has left that authority behind: else this node would lock itself out.
    async fn is_reachable_by(
        &self,
        authorities: &[CertificateDer<'static>],
        proved_by: &CertificateDer<'static>,
        identity: &Identity,
    ) -> Result<(), KeeperError> {
        if authorities.contains(proved_by) {
            return Ok(());
        }
        match self.target.connect_as(identity, authorities).await {
            Ok(_) => Ok(()),
            Err(source) => Err(KeeperError::LocksOut { source }),
        }
    }

    async fn renew(&mut self) {
        let Source::Own(files) = self.target.source.clone() else {
            return;
        };
        match self.try_renew(files).await {
            Ok(until) => {
                tracing::info!(until = %moment(until), "this node's certificate is renewed; the link goes on");
                (self.plan, self.retry, self.renewal_failure) = (None, None, None);
                self.unconfirmed = false;
                self.renewed = Some(Instant::now());
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                if self.renewal_failure.is_none() {
                    tracing::warn!(
                        error = why,
                        "this node's certificate cannot be renewed yet; tried again"
                    );
                }
                self.unconfirmed = matches!(error, KeeperError::Unconfirmed { .. });
                self.renewal_failure = Some(why);
                let last = self.retry.map_or(RETRY_FIRST / 2, |(_, wait)| wait);
                let left = SystemTime::from(self.state.borrow().not_after)
                    .duration_since(SystemTime::now())
                    .unwrap_or(RETRY_LAST);
                let most = RETRY_LAST.min(left / RETRIES_IN_REST).max(RENEW_SPACING);
                let wait = (last * 2).min(most);
                self.retry = Some((Instant::now() + wait, wait));
            }
        }
    }

    async fn try_renew(&self, files: IdentityFiles) -> Result<OffsetDateTime, KeeperError> {
        let connect = |source| KeeperError::Connect { source };
        let before = self.target.source.load_of(&self.target.node)?;
        let connection = self.target.connect().await.map_err(connect)?;
        let proved_by = connection.proved_by.clone();
        let key = issued::new_key()?;
        let answer = ask(connection, issued::request(&key)?).await?;
        let authorities = issued::authorities(answer.authority_der)?;
        let certificate = CertificateDer::from(answer.certificate_der);
        let facts = issued::check(&certificate, &key, &self.target.node, &authorities)?;
        self.is_reachable_by(&authorities, &proved_by, &before).await?;
        write(move || {
            let lock = files.lock()?;
            let pem = super::certificate::to_pem(&[certificate]);
            unchanged(&files, &before)?;
            files.install(&lock, &pem, &key, &authorities, false).map(|_| ())
        })
        .await?;
        self.confirm().await.map_err(|source| KeeperError::Unconfirmed {
            source: Box::new(source),
        })?;
        Ok(facts.not_after)
    }

    /// Shows the stored certificate to the control plane, which counts it as this node's from then on.
    async fn confirm(&self) -> Result<(), KeeperError> {
        let connect = |source| KeeperError::Connect { source };
        let connection = self.target.connect().await.map_err(connect)?;
        match ask(connection, vec![]).await {
            // An earlier control plane, which does not ask for it.
            Err(KeeperError::Refused { source }) if source.code() == tonic::Code::InvalidArgument => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}

/// Calls Renew.
async fn ask(
    connection: Connection,
    certificate_request_der: Vec<u8>,
) -> Result<wire::RenewResponse, KeeperError> {
    let asked = wire::RenewRequest {
        certificate_request_der,
    };
    let client = NodeServiceClient::new(connection.channel);
    let mut client = client.max_decoding_message_size(wire::MESSAGE_BYTES_MAX);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.renew(asked))
        .await
        .map_err(|_| KeeperError::Slow)?
        .map_err(|status| KeeperError::Refused {
            source: Box::new(status),
        })?;
    Ok(answer.into_inner())
}

/// What was decided for `before` is not for the identity of a `register --force` that came in between. Under the lock.
fn unchanged(files: &IdentityFiles, before: &Identity) -> Result<(), IdentityError> {
    let now = files.load()?.map(|identity| identity.certificate_pem);
    if now.as_ref() == Some(&before.certificate_pem) {
        return Ok(());
    }
    let problem = "another identity was installed meanwhile".into();
    Err(IdentityError::Answer { problem })
}

/// Off the runtime: it waits for the disk.
async fn write(work: impl FnOnce() -> Result<(), IdentityError> + Send + 'static) -> Result<(), KeeperError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| KeeperError::Write { source })?
        .map_err(KeeperError::Identity)
}

fn same(a: &[CertificateDer<'_>], b: &[CertificateDer<'_>]) -> bool {
    a.len() == b.len() && a.iter().all(|one| b.contains(one))
}

/// When the certificate's life began here: it is backdated, so the file's own date, where that makes sense.
fn begin(identity: &Identity) -> SystemTime {
    identity.since.clamp(
        SystemTime::from(identity.not_before),
        SystemTime::from(identity.not_after),
    )
}

fn life(identity: &Identity) -> Duration {
    SystemTime::from(identity.not_after)
        .duration_since(begin(identity))
        .unwrap_or_default()
}
