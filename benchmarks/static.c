/* A program that exits with status 0, linked statically with a libc. */
int main(void) { return 0; }
