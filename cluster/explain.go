package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
)

// Service is one of the programs whose API is asked.
type Service string

// The services.
const (
	ServiceNomad  Service = "Nomad"
	ServiceConsul Service = "Consul"
	ServiceVault  Service = "Vault"
)

// variables are those of the environment that say how a service is reached.
var variables = map[Service]struct{ address, token, ca, cert string }{
	ServiceNomad:  {"NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_CACERT", "NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"},
	ServiceConsul: {"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT", "CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"},
	ServiceVault:  {"VAULT_ADDR", "VAULT_TOKEN", "VAULT_CACERT", "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"},
}

// Explain says what an error of a service's API means, and the way out. It wraps
// err, and is nil where that is.
func Explain(service Service, address string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("asking %s at %s: %w%s", service, address, err, remedy(service, err))
}

func remedy(service Service, err error) string {
	v := variables[service]
	switch StatusOf(err) {
	case http.StatusBadRequest:
		if strings.Contains(err.Error(), "HTTP request to an HTTPS server") {
			return fmt.Sprintf(": TLS is spoken there: write https:// in %s", v.address)
		}
	case http.StatusForbidden, http.StatusUnauthorized:
		return fmt.Sprintf(": the token in %s is missing, unknown, or may not do this", v.token)
	case http.StatusNotFound:
		return ""
	}
	if status := StatusOf(err); status >= 500 {
		return fmt.Sprintf(": the server itself has a problem: its log says more (is there a leader? is it sealed?); %s names another one", v.address)
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	var dns *net.DNSError
	var op *net.OpError
	switch text := err.Error(); {
	case errors.As(err, &unknown):
		return fmt.Sprintf(": name the CA that its certificate is of in %s", v.ca)
	case errors.As(err, &name):
		return fmt.Sprintf(": its certificate is for another name: write the one of the certificate into %s, or into its _TLS_SERVER_NAME", v.address)
	case errors.As(err, &invalid):
		return ": its certificate isn't valid now: renew it, or look at this machine's clock"
	case errors.As(err, &alert) || strings.Contains(text, "remote error: tls:"):
		return fmt.Sprintf(": it wants a client's certificate that its CA has signed: name one in %s", v.cert)
	case errors.As(err, &header) || strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return fmt.Sprintf(": nobody speaks TLS there: write http:// in %s", v.address)
	case strings.Contains(text, "HTTP request was sent to an HTTPS server") || strings.Contains(text, "malformed HTTP response"):
		return fmt.Sprintf(": TLS is spoken there: write https:// in %s", v.address)
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		return fmt.Sprintf(": it took too long to answer: is the network between fine, and is %s right?", v.address)
	case errors.As(err, &dns):
		return fmt.Sprintf(": its name isn't known to DNS here: is %s right?", v.address)
	case errors.As(err, &op):
		return fmt.Sprintf(": nobody answers there: does it run, and is %s right?", v.address)
	}
	return ""
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// StatusOf is the HTTP status that a service answered with, where err is of one
// that isn't 2xx; else 0.
func StatusOf(err error) int {
	var n nomad.UnexpectedResponseError
	var c consul.StatusError
	var v *vault.ResponseError
	switch {
	case errors.As(err, &n):
		return n.StatusCode()
	case errors.As(err, &c):
		return c.Code
	case errors.As(err, &v):
		return v.StatusCode
	}
	return 0
}
