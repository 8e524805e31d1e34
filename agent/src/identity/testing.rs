//! An authority, a control plane that issues identities, and a proxy, for tests.

#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use berth_proto::node::v1::{
    self as wire,
    node_service_server::{NodeService, NodeServiceServer},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::ServerTlsConfig};

use super::certificate::to_pem;

pub(crate) struct Authority(pub CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(365);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A node's certificate, good for a day.
    pub fn node(&self, id: &str, key: &KeyPair) -> CertificateDer<'static> {
        node_params(id, Duration::days(1))
            .signed_by(key, &self.0)
            .unwrap()
            .der()
            .clone()
    }

    /// Answers a request as the control plane does.
    pub fn sign(&self, request: &[u8], id: &str, life: Duration) -> CertificateDer<'static> {
        let mut request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        request.params = node_params(id, life);
        request.signed_by(&self.0).unwrap().der().clone()
    }

    /// A server's certificate and its key, PEM.
    pub fn server(
        &self,
        names: &[&str],
        from: OffsetDateTime,
        to: OffsetDateTime,
    ) -> (CertificateDer<'static>, String) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (from, to);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.0).unwrap().der().clone();
        (der, key.serialize_pem())
    }
}

fn node_params(id: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "default");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + life;
    params
}

pub(crate) const NODE: &str = "0123456789abcdef0123456789abcdef";

/// A control plane as far as identities go.
pub(crate) struct Served {
    pub authority: Arc<Authority>,
    pub listen: SocketAddr,
    pub registers: Arc<Mutex<Vec<wire::RegisterRequest>>>,
    pub renewals: Arc<Mutex<Vec<wire::RenewRequest>>>,
    /// Certificates that nodes said they have stored.
    pub confirmed: Arc<Mutex<Vec<Vec<u8>>>>,
    answers: Arc<Mutex<Answers>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Answers {
    refuse: Option<Code>,
    /// So many confirmations are not answered well.
    miss: u32,
    /// Besides the authority itself.
    authorities: Vec<Vec<u8>>,
    life: Option<Duration>,
}

struct Service {
    authority: Arc<Authority>,
    registers: Arc<Mutex<Vec<wire::RegisterRequest>>>,
    renewals: Arc<Mutex<Vec<wire::RenewRequest>>>,
    confirmed: Arc<Mutex<Vec<Vec<u8>>>>,
    answers: Arc<Mutex<Answers>>,
}

impl Served {
    pub async fn start() -> Self {
        let authority = Authority::new();
        let now = OffsetDateTime::now_utc();
        let (leaf, key) = authority.server(&["127.0.0.1"], now - Duration::HOUR, now + Duration::HOUR);
        let chain = [leaf, authority.der()];
        Self::start_with(authority, &chain, &key).await
    }

    pub async fn start_with(authority: Authority, chain: &[CertificateDer<'static>], key: &str) -> Self {
        let authority = Arc::new(authority);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let identity = tonic::transport::Identity::from_pem(to_pem(chain), key);
        let tls = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(tonic::transport::Certificate::from_pem(authority.0.pem()))
            .client_auth_optional(true);
        let (registers, renewals, answers) =
            <(Arc<Mutex<Vec<_>>>, Arc<Mutex<Vec<_>>>, Arc<Mutex<Answers>>)>::default();
        let confirmed = Arc::<Mutex<Vec<_>>>::default();
        let service = Service {
            authority: Arc::clone(&authority),
            registers: Arc::clone(&registers),
            renewals: Arc::clone(&renewals),
            confirmed: Arc::clone(&confirmed),
            answers: Arc::clone(&answers),
        };
        let task = tokio::spawn(async move {
            let mut server = tonic::transport::Server::builder().tls_config(tls).unwrap();
            server
                .add_service(NodeServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            authority,
            listen,
            registers,
            renewals,
            confirmed,
            answers,
            task,
        }
    }

    pub fn address(&self) -> String {
        format!("https://{}", self.listen)
    }

    pub fn refuse(&self, code: Option<Code>) {
        self.answers.lock().unwrap().refuse = code;
    }

    pub fn miss_confirmations(&self, count: u32) {
        self.answers.lock().unwrap().miss = count;
    }

    pub fn answer_with(&self, life: Duration, authorities: &[CertificateDer<'_>]) {
        let mut answers = self.answers.lock().unwrap();
        answers.life = Some(life);
        answers.authorities = authorities.iter().map(|der| der.to_vec()).collect();
    }

    pub fn key_of(request: &wire::RegisterRequest) -> Vec<u8> {
        let der = request.certificate_request_der.as_slice().into();
        let request = CertificateSigningRequestParams::from_der(&der).unwrap();
        rcgen::PublicKeyData::der_bytes(&request.public_key).to_vec()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    fn issue(&self, request: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), Status> {
        let answers = self.answers.lock().unwrap();
        if let Some(code) = answers.refuse {
            return Err(Status::new(code, "not today"));
        }
        let life = answers.life.unwrap_or(Duration::DAY);
        let mut authorities = vec![self.authority.der().to_vec()];
        authorities.extend(answers.authorities.iter().cloned());
        Ok((self.authority.sign(request, NODE, life).to_vec(), authorities))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NodeService for Service {
    type LinkStream = ReceiverStream<Result<wire::ControlMessage, Status>>;
    type BulkStream = ReceiverStream<Result<wire::BulkToNode, Status>>;

    async fn register(&self, request: Request<wire::RegisterRequest>) -> Answer<wire::RegisterResponse> {
        let request = request.into_inner();
        self.registers.lock().unwrap().push(request.clone());
        let (certificate_der, authority_der) = self.issue(&request.certificate_request_der)?;
        Ok(Response::new(wire::RegisterResponse {
            node_id: NODE.into(),
            cluster: "default".into(),
            certificate_der,
            authority_der,
        }))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Answer<wire::RenewResponse> {
        let Some(chain) = request.peer_certs() else {
            return Err(Status::unauthenticated("no certificate"));
        };
        let request = request.into_inner();
        if request.certificate_request_der.is_empty() {
            let mut answers = self.answers.lock().unwrap();
            if answers.miss > 0 {
                answers.miss -= 1;
                return Err(Status::unavailable("confirm it again"));
            }
            self.confirmed.lock().unwrap().push(chain[0].to_vec());
            return Ok(Response::new(wire::RenewResponse::default()));
        }
        self.renewals.lock().unwrap().push(request.clone());
        let (certificate_der, authority_der) = self.issue(&request.certificate_request_der)?;
        Ok(Response::new(wire::RenewResponse {
            certificate_der,
            authority_der,
        }))
    }

    async fn link(&self, _: Request<Streaming<wire::NodeMessage>>) -> Answer<Self::LinkStream> {
        Err(Status::unimplemented("identities only"))
    }

    async fn bulk(&self, _: Request<Streaming<wire::BulkFromNode>>) -> Answer<Self::BulkStream> {
        Err(Status::unimplemented("identities only"))
    }
}

/// A proxy that tunnels to one place, whatever is asked for.
pub(crate) struct Proxy {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<String>>>,
}

pub(crate) async fn proxy_to(place: SocketAddr) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let heads = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heads = Arc::clone(&heads);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                heads.lock().unwrap().push(String::from_utf8(head).unwrap());
                let mut onward = TcpStream::connect(place).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    Proxy { address, asked }
}
