/* A program that ends with status 0, with a libc that was linked statically. */
int main(void) { return 0; }
